"""The selector: what it reads, how it is saved, and what a broken file says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tokensieve.errors import ConfigError, EncoderMismatchError, UnknownNameError, WeightsError
from tokensieve.nn.config import ReconstructorConfig
from tokensieve.nn.reconstructor import FeatureReconstructor
from tokensieve.nn.selector import Selector, SelectorConfig, fast_in
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (3, 4))


def make(**options: object) -> Selector:
    torch.manual_seed(0)
    selector = Selector(SelectorConfig(encoder=ENCODER, **{"depth": 2, **options}))
    selector.fit_normaliser(3 * torch.randn(20, 12, 16) + 1)
    return selector.eval()


def features(crops: int = 2) -> torch.Tensor:
    return torch.randn(crops, 12, 16, generator=torch.Generator().manual_seed(1))


def test_score_is_keep_minus_drop() -> None:
    selector = make()
    logits = selector(features())
    assert logits.shape == (2, 12, 2)
    assert_close(selector.scores(features()), logits[..., 1] - logits[..., 0])


def test_features_are_standardised_with_stored_numbers() -> None:
    selector = make()
    seen = selector.standardise(3 * torch.randn(500, 12, 16) + 1)
    assert_close(seen.mean((0, 1)), torch.zeros(16), atol=0.3, rtol=0)
    assert_close(seen.std((0, 1)), torch.ones(16), atol=0.3, rtol=0)
    assert torch.equal(make(normalise="none").standardise(features()), features())


@pytest.mark.parametrize("positions", ["none", "sincos"])
@pytest.mark.parametrize("junk", [1e4, float("nan")])
def test_padding_is_not_read(positions: str, junk: float) -> None:
    selector = make(positions=positions)
    alone = selector.scores(features())
    tokens = torch.cat([features(), torch.full((2, 4, 16), junk)], 1)
    valid = torch.arange(16).expand(2, 16) < 12
    # a row more below: the positions of the first rows stay what they were
    padded = selector.scores(tokens, valid, (4, 4))
    assert_close(padded[:, :12], alone)


def test_positions_tell_equal_tokens_apart() -> None:
    same = torch.ones(1, 12, 16)
    for positions, differs in (("none", False), ("sincos", True), ("learned", True)):
        scores = make(positions=positions).scores(same)
        assert bool((scores.std() > 1e-5) == differs)


def test_learned_positions_refuse_another_grid() -> None:
    selector = make(positions="learned")
    with pytest.raises(EncoderMismatchError, match=r"crops of grid \(3, 4\)"):
        selector(features(), grid=(4, 3))
    varying = EncoderInfo("toy", 16, -1, 2, 2, 32)
    with pytest.raises(ConfigError, match="Use positions='sincos'"):
        Selector(SelectorConfig(encoder=varying, positions="learned"))


def test_other_width_is_refused() -> None:
    with pytest.raises(EncoderMismatchError, match="features of width 16"):
        make()(torch.zeros(1, 12, 8))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"positions": "sincoss"}, "Unknown positions 'sincoss'. Did you mean 'sincos'"),
        ({"rule": "best"}, "Unknown rule 'best'"),
        ({"heads": 5}, "Expected `heads` to divide the width 16. Got 5"),
        ({"depth": 0}, "Expected `depth` of at least 1. Got 0"),
    ],
)
def test_bad_options(option: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**option)
    assert message in str(caught.value)


def test_save_and_load(tmp_path: Path) -> None:
    selector = make(positions="learned", rule="gated", width=8, heads=4)
    selector.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    again = Selector.from_pretrained(tmp_path)
    assert again.config == selector.config
    assert torch.equal(again.scores(features()), selector.scores(features()))
    assert Selector.from_pretrained(tmp_path, rule="top").config.rule == "top"
    assert not again.training


def test_half_precision_weights_load_in_single(tmp_path: Path) -> None:
    make().half().save_pretrained(tmp_path)
    again = Selector.from_pretrained(tmp_path)
    assert next(again.parameters()).dtype == torch.float32
    assert_close(again.scores(features()), make().scores(features()), atol=0.02, rtol=0.02)


def test_reconstructor_is_saved_alike(tmp_path: Path) -> None:
    model = FeatureReconstructor(ReconstructorConfig(encoder=ENCODER, depth=1)).eval()
    model.save_pretrained(tmp_path)
    again = FeatureReconstructor.from_pretrained(tmp_path)
    mask = torch.ones(2, 12)
    assert torch.equal(again(features(), mask), model(features(), mask))


def test_push_to_hub_uploads_both_files(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []

    class Repo:
        repo_id = "someone/selector"

    def upload(self, *, folder_path, **_):
        uploaded.extend(p.name for p in Path(folder_path).iterdir())

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **_: Repo())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    make().push_to_hub("someone/selector")
    assert {"config.json", "model.safetensors"} <= set(uploaded)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _drop_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("head.bias")
    save_file(tensors, folder / "model.safetensors")


def _poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "head.bias": torch.full((2,), float("nan"))}, folder / "model.safetensors"
    )


def _config(**values: object):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def _dtype(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.bias"] = tensors["head.bias"].long()
    save_file(tensors, folder / "model.safetensors")


def _more(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "zzz": torch.zeros(1)}, folder / "model.safetensors")


def _header(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])


def _folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _garble(folder: Path) -> None:
    (folder / "config.json").write_text('{"depth": 2')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "Expected a complete safetensors file"),
        (_empty, "Expected a complete safetensors file"),
        (_drop_file, "Expected model.safetensors in"),
        (_drop_tensor, "Missing: head.bias (1 differ)"),
        (_poison, "Expected finite numbers in head.bias"),
        (_config(ffn=48), "Expected stack.layers.0.down.weight of shape (16, 48)"),
        (_config(colour="red"), "Unknown SelectorConfig field 'colour'"),
        (_config(encoder={"width": 16}), "Expected `model_type` among the fields of EncoderInfo"),
        (_dtype, "Expected head.bias as float32 in"),
        (_more, "Unexpected: zzz (1 differ)"),
        (_header, "Expected a complete safetensors file"),
        (_folder, "Got a folder of that name"),
        (_pickle, "Got pytorch_model.bin, a pickle, which may run code"),
        (_config(depth=256, width=2**16, ffn=2**18), "Expected the tensors of its config"),
        (_config(depth=10**30), "Expected `depth` of at most 256"),
        (_config(depth=True), "Expected `depth` as a whole number"),
        (_config(depth="3"), "Expected `depth` as a whole number"),
        (_config(trust=float("nan")), "Expected `trust` of 0 or more"),
        (_config(thresholds="many"), "Expected `thresholds` as a tuple"),
        (_config(depth=0), "to describe a Selector. Expected `depth` of at least 1"),
        (_garble, "Expected an object as JSON in"),
    ],
)
def test_damaged_weights_are_named_in_one_line(tmp_path: Path, damage, message: str) -> None:
    make().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError) as caught:
        Selector.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["./nowhere", "/tmp/no/such/folder", "nowhere", "owner/nowhere"])
def test_missing_weights(source: str) -> None:
    with pytest.raises(WeightsError, match="folder") as caught:
        Selector.from_pretrained(source)
    assert "\n" not in str(caught.value)


def test_broken_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("tokensieve.nn.pretrained.save_file", fail)
    with pytest.raises(ConfigError, match=rf"write {tmp_path}/model\.safetensors\. Got: disk full"):
        make(width=8).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_unknown_choice_is_a_config_error() -> None:
    assert issubclass(UnknownNameError, ConfigError)


def test_half_precision_is_computed_in_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, tokens = make(), features().bfloat16()
    seen: list[torch.dtype] = []
    made.stack.register_forward_hook(lambda *passed: seen.append(passed[-1].dtype))

    def scores(fast: bool, precision: str = "auto") -> torch.Tensor:
        monkeypatch.setattr("tokensieve.nn.selector.fast_in", lambda device, dtype: fast)
        made.config = replace(made.config, precision=precision)
        return made.scores(tokens)

    with torch.no_grad():
        exact, half = scores(False), scores(True)
        assert torch.equal(scores(True, "float32"), exact)
    assert not torch.equal(half, exact)
    assert_close(half, exact, atol=0.05, rtol=0.05)
    assert half.dtype is exact.dtype is torch.float32
    assert torch.equal(scores(True), exact)  # with gradients: the caller's own choice


def test_which_device_is_fast_in_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    told = fast_in.__wrapped__
    assert told("cpu", torch.bfloat16)
    assert not told("cpu", torch.float16)
    assert told("cuda", torch.float16)
    assert not told("cuda", torch.bfloat16)
    assert not told("mps", torch.float16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not told("cpu", torch.bfloat16)
