"""A sieve on top of a fused LLaVA: what methods are shown, told and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from families.methods import ByFeatureNorm, ByNorm, PeekFeatures
from families.tiny import IMAGE, build
from tokensieve.data.extraction.extract import ExtractSettings, extract
from tokensieve.data.sources import open_source
from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import EncoderMismatchError, TokensieveError, UnsupportedError
from tokensieve.hf.attention.signals import patches_of_tokens
from tokensieve.hf.attention.tap import tapped
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.table import FAMILIES
from tokensieve.hf.families.towers import attention_in, encoder_layers
from tokensieve.hf.fused import FusedLlavaConfig, FusedLlavaForConditionalGeneration, fuse
from tokensieve.hf.load import load_encoder
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.sieve import compress
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.selector import Selector
from tokensieve.types import Kind, Signal, Site
from toys.extract_tiny import noise
from toys.llava_tiny import tiny_model, tiny_processor


def before_the_llm(name: str) -> bool:
    """Whether `compress` can do it with a picture and without weights."""
    kind = method_class(name)
    return kind.reads_picture and not kind.trained and kind.site in (Site.FEATURES, Site.EMBEDS)


FUSED = ("fused_llava", "fused_siglip", "fused_internvl")


def clip(**options: Any) -> Loaded:
    return fuse(tiny_model(), tiny_processor(), **{"blocks": [1, 2], **options})


def prompt(loaded: Loaded) -> Any:
    return loaded.processor(images=[noise(60, 40)], text=["<image> what"], return_tensors="pt")


def kept_of(model: Any, inputs: Any, method: Any, keep: float | int = 0.4) -> list[list[int]]:
    report = compress(model, inputs, method, keep).report
    images = [image for p in report.calls[0].prompts for image in p.images]
    return [crop.kept.tolist() for image in images for crop in image.crops]


@pytest.mark.parametrize("name", FUSED)
def test_features_are_what_the_last_layers_of_the_projector_read(name: str) -> None:
    tiny, seen = build(name), []
    mlp = tiny.model.model.multi_modal_projector.spatial.mlp
    handle = mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    method = PeekFeatures([])
    compress(tiny.model, tiny.inputs([1]), method, 0.4)
    handle.remove()
    fusion = tiny.model.config.fusion
    assert_close(method.seen[0].tokens, seen[0], rtol=0, atol=0)
    assert method.seen[0].tokens.shape == (1, fusion.tokens, fusion.row_width)
    assert method.seen[0].grid == (None if name == "fused_siglip" else (4, 4))
    info = encoder_info(tiny.model)
    assert (info.width, info.grid) == (fusion.row_width, method.seen[0].grid)
    assert info.at_embeds().width == 32


def test_fingerprints_tell_how_rows_are_made() -> None:
    infos = [encoder_info(build(name).model) for name in FUSED]
    assert [info.model_type for info in infos] == [
        "clip_vision_model/fusion-paper-k2-e1-m3",
        "siglip_vision_model/fusion-release-k2-e2-m1",
        "internvl_vision/avgpool-paper-k2-e1-m2",
    ]
    assert [info.width for info in infos] == [96, 48, 24]
    assert [info.layer for info in infos] == [3, -1, -1]  # of [1, 3, -2] the one farthest up
    released = FusedLlavaConfig(vision_feature_layer=[-2, 21, 18, 15, 12, 9, 6, 3])
    with torch.device("meta"):
        model = FusedLlavaForConditionalGeneration(released)
    assert encoder_info(model).layer == -2
    assert encoder_info(model).block == 22


def test_a_selector_of_the_encoder_fits_a_plain_projector_and_no_other() -> None:
    base, processor = tiny_model(), tiny_processor()
    info = encoder_info(base)
    torch.manual_seed(0)
    selector = Selector(SelectorConfig(encoder=info, heads=2)).eval()
    method = get_method("selector", weights=selector)
    plain = fuse(base, processor, blocks=1, kind="mlp", kernel=1)
    assert encoder_info(plain.model) == info
    inputs = prompt(plain)
    assert kept_of(plain.model, inputs, method) == kept_of(base, inputs, method)
    others = (
        {"blocks": [1, 2], "kind": "mlp", "kernel": 1},  # as wide and on the same grid
        {"blocks": 1, "kind": "avgpool"},
        {"blocks": 1},
        {"blocks": 1, "kernel": 1, "form": "release"},
    )
    for options in others:
        other = fuse(base, processor, **options)
        with pytest.raises(EncoderMismatchError, match="was trained for an encoder with model_ty"):
            compress(other.model, prompt(other), method, 0.4)
    own = Selector(SelectorConfig(encoder=encoder_info(other.model), heads=2)).eval()
    with pytest.raises(EncoderMismatchError, match="was trained for an encoder with model_type"):
        compress(base, inputs, get_method("selector", weights=own), 0.4)


def test_tokens_of_a_cell_are_told_the_mean_of_its_patches() -> None:
    tiny, seen = build("fused_llava"), []
    signal, inputs = Signal(Kind.KEYS, 1), tiny.inputs([1, 1])
    module = attention_in(encoder_layers(tiny.model)[1])
    with tapped([module], lambda m, q, k, scaling, mask: seen.append(k)):
        found = encode(tiny.model, inputs, signals=[signal]).signals[signal]
    patches = seen[0].mean(1)[:, 1:].unflatten(1, (4, 2, 4, 2))  # row, in it, column, in it
    assert_close(torch.cat(found), patches.mean((2, 4)).flatten(1, 2))


@pytest.mark.parametrize("fused", [2, 4])
def test_several_tokens_of_a_cell_have_no_attention_of_their_own(fused: int) -> None:
    """With as many tokens as patches (k = 2, E = 4) they are not each other's either."""
    made = clip(fused=fused)
    with pytest.raises(UnsupportedError, match=rf"makes {fused} of a cell of 2 x 2"):
        encode(made.model, prompt(made), signals=[Signal(Kind.CLS_ATTENTION, 0)])


def test_patches_without_the_family_s_own_map_would_be_mixed_up() -> None:
    """The check bites: taken in order, as other families' are, patches go to other tokens."""
    tiny = build("fused_llava")
    packings = encode(tiny.model, tiny.inputs([1])).packings
    right = patches_of_tokens(tiny.model, FAMILIES["fused_llava"], packings, 4)
    wrong = patches_of_tokens(tiny.model, FAMILIES["qwen2_vl"], packings, 4)
    assert right[0].tolist() == [0, 1, 8, 9]
    assert right[5].tolist() == [18, 19, 26, 27]
    assert not torch.equal(right, wrong)


@pytest.mark.parametrize("name", FUSED)
def test_what_would_leave_the_grid_unfilled_is_refused(name: str) -> None:
    tiny = build(name)
    inside = [n for n in method_names() if method_class(n).site is Site.ENCODER and n != "dymu"]
    for method in inside:
        with pytest.raises(UnsupportedError, match=r"of 'fused_llava'.*acts on 'features'"):
            compress(tiny.model, tiny.inputs([1]), method, 0.4)
    said = "without one" if name == "fused_siglip" else "takes other picture sizes"
    with pytest.raises(UnsupportedError, match=said):
        compress(tiny.model, tiny.inputs([1]), "downsample", 0.4)


@pytest.mark.parametrize("method", [n for n in method_names() if before_the_llm(n)])
def test_tokens_without_a_grid_are_chosen_or_refused_in_words(method: str) -> None:
    """E = 2: whatever wants a grid says so; nothing guesses one."""
    tiny = build("fused_siglip")
    try:
        short = compress(tiny.model, tiny.inputs([1]), method, 0.5)
    except TokensieveError as error:
        assert "Expected" in str(error)  # noqa: PT017 - either of two outcomes is right
        return
    rows = short.inputs["mm_encoder_outputs"]["image"].pooler_output[0]
    assert len(rows) == int((short.inputs["input_ids"] == IMAGE).sum()) <= 32


@pytest.mark.parametrize("options", [{}, {"fused": 2, "form": "release"}, {"kind": "avgpool"}])
@pytest.mark.parametrize("site", [Site.FEATURES, Site.EMBEDS])
def test_extracted_rows_are_those_of_the_model(
    options: dict[str, Any], site: Site, tmp_path: Path
) -> None:
    made = clip(**options)
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        noise(60, 40, seed=i).save(tmp_path / "pictures" / f"{i}.png")
    loaded = load_encoder(str(tmp_path / "model"))
    source = open_source(str(tmp_path / "pictures"))
    extract(loaded, [source], tmp_path / "store", ExtractSettings(site, chunk=2, batch=2))
    store = FeatureStore([tmp_path / "store"])
    info = encoder_info(made.model)
    assert store.encoder == (info if site is Site.FEATURES else info.at_embeds())
    batch = store.batch(torch.arange(3))
    assert (batch.grids or (None,))[0] == made.model.config.fusion.token_grid
    picture = made.processor(images=[noise(60, 40, seed=1)], text=["<image>"], return_tensors="pt")
    with torch.no_grad():
        encoded = encode(made.model, dict(picture))
    wanted = encoded.features[0] if site is Site.FEATURES else encoded.images[0][None]
    assert_close(batch.features[1:2], wanted.half().float(), rtol=2e-3, atol=2e-3)


def test_features_and_embeddings_are_kept_by_their_own_norms() -> None:
    """Methods of the two sites see other tokens: neither stands in for the other."""
    tiny = build("fused_llava")
    encoded = encode(tiny.model, tiny.inputs([1]))
    for method, rows in ((ByFeatureNorm(), encoded.features[0][0]), (ByNorm(), encoded.images[0])):
        best = rows.float().norm(dim=-1).topk(4).indices
        assert kept_of(tiny.model, encoded, method, 4) == [sorted(best.tolist())]
