"""`train_fusion`: what learns, what is written, and what cannot be learned from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokensieve.errors import (
    ConfigError,
    InputError,
    MissingPackageError,
    PictureError,
    TrainingError,
    WeightsError,
)
from tokensieve.hf.load import load_model
from tokensieve.train.fusion.model import load_projector, projector_of
from tokensieve.train.fusion.run import Data, train_fusion
from tokensieve.train.fusion.trainer import FusionTrainer
from toys.fusion_toys import rows_of, toy, toy_recipe, turns, write_rows

PRESETS = ("stage1", "stage2", "stage2-lora")


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path, rows_of())


@pytest.fixture
def captions(tmp_path):
    rows = rows_of(8, 0)
    for row in rows:
        row["conversations"] = row["conversations"][:2]
    return write_rows(tmp_path, rows, "captions.json")


def data_of(preset, data, captions):
    return captions if preset == "stage1" else data


def changed(out, loaded):
    """Names of weights that differ from before."""
    before = loaded.model.state_dict()
    after = load_model(str(out)).model.state_dict()
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_learns(preset, data, captions, tmp_path):
    out = train_fusion(
        toy(), Data(*data_of(preset, data, captions)), toy_recipe(preset), tmp_path / "o"
    )
    names = changed(out, toy())
    inside = {n for n in toy().model.state_dict() if "vision_tower" not in n}
    projector = {n for n in inside if "multi_modal_projector" in n}
    linear = {n for n in inside if n.endswith("_proj.weight")}
    wanted = {"stage1": projector, "stage2": inside, "stage2-lora": projector | linear}[preset]
    rarely = {"model.language_model.embed_tokens.weight"}  # of words that occur
    assert names | rarely == wanted | rarely
    own = load_file(out.parent / "projector.safetensors")
    model = load_model(str(out)).model
    assert own.keys() == projector_of(model).state_dict().keys()
    fresh = toy().model
    load_projector(fresh, out.parent)
    for name, value in projector_of(model).state_dict().items():
        assert torch.equal(value, projector_of(fresh).state_dict()[name])


def test_the_folder_is_a_model_like_any_other(data, tmp_path):
    loaded = toy()
    out = train_fusion(loaded, Data(*data), toy_recipe("stage2"), tmp_path / "o")
    again = load_model(str(out))
    assert type(again.model) is type(loaded.model)
    assert again.model.config.get_text_config().use_cache
    assert "use_cache" not in json.loads((out / "config.json").read_text())
    assert again.model.generation_config.eos_token_id == 2
    from PIL import Image

    inputs = again.processor(
        text=["USER: <image>\nwhat? ASSISTANT:"], images=[Image.new("RGB", (50, 60))],
        return_tensors="pt",
    )  # fmt: skip
    loaded.model.eval()
    torch.testing.assert_close(again.model(**inputs).logits, loaded.model(**inputs).logits)
    assert again.model.generate(**inputs, max_new_tokens=3).shape[0] == 1


def test_the_adapter_is_lora_for_peft(data, tmp_path):
    import peft

    out = train_fusion(toy(), Data(*data), toy_recipe("stage2-lora"), tmp_path / "o")
    merged = load_model(str(out)).model
    wrapped = peft.PeftModel.from_pretrained(toy().model, tmp_path / "o" / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    picture = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    ids[0, 2:6] = 4
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, pixel_values=picture).logits for m in (merged, wrapped))
        base = toy().model(input_ids=ids, pixel_values=picture).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert (ours - base).abs().max() > 1e-3


def test_the_encoder_stays_as_it_is_in_use(data, tmp_path):
    seen = []
    loaded = toy()

    def watch(module, inputs, output):
        seen.append((module.training, output.last_hidden_state.requires_grad))

    loaded.model.model.vision_tower.register_forward_hook(watch)
    train_fusion(loaded, Data(*data), toy_recipe("stage2", "train.steps=2"), tmp_path / "o")
    assert seen == [(False, False)] * 4


def test_adam_without_decay_at_two_rates(data, tmp_path, monkeypatch):
    kept = []
    known = FusionTrainer.create_optimizer
    monkeypatch.setattr(
        FusionTrainer, "create_optimizer", lambda *a: kept.append(known(*a)) or kept[-1]
    )
    recipe = toy_recipe("stage2-lora", "train.llm_lr=0.01", "train.warmup=0")
    train_fusion(toy(), Data(*data), recipe, tmp_path / "o")
    groups = kept[0].param_groups
    assert [group["initial_lr"] for group in groups] == [0.003, 0.01]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]
    loaded = toy().model
    assert sum(p.numel() for p in groups[0]["params"]) == sum(
        p.numel() for p in projector_of(loaded).parameters()
    )
    log = [json.loads(line) for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in log]
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4]
    assert rates == sorted(rates, reverse=True)  # cosine, from the first step on


@pytest.mark.slow
def test_no_checkpointing_gives_the_same(data, tmp_path):
    for name, value in (("a", "true"), ("b", "false")):
        recipe, loaded = toy_recipe("stage2", f"train.checkpointing={value}"), toy()
        train_fusion(loaded, Data(*data), recipe, tmp_path / name)
        layers = loaded.model.model.language_model.layers
        assert [layer.gradient_checkpointing for layer in layers] == [value == "true"] * 2
    a, b = (load_file(tmp_path / n / "model" / "model.safetensors") for n in "ab")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name])


@pytest.mark.slow
def test_turns_of_a_batch_give_what_the_whole_does(data, tmp_path):
    """The mean is over the answers' tokens of a step, not over its parts."""
    for name, at_once in (("a", 1), ("b", 4)):
        recipe = toy_recipe("stage2", f"train.per_device={at_once}")
        train_fusion(toy(), Data(*data), recipe, tmp_path / name)
    a, b = (load_file(tmp_path / n / "model" / "model.safetensors") for n in "ab")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=1e-5, rtol=1e-4)


def test_an_unreadable_picture_stops_or_is_counted(data, tmp_path):
    (data[1] / "3.png").write_bytes(b"no picture")
    (data[1] / "5.png").write_bytes(b"")
    out = tmp_path / "o"
    with pytest.raises(PictureError, match=r"rows\.json, row \d .id p\d.: .*--skip-bad-rows"):
        train_fusion(toy(), Data(*data), toy_recipe("stage2"), out)
    made = train_fusion(toy(), Data(*data), toy_recipe("stage2"), out, skip_bad_rows=True)
    stored = json.loads((out / "train.json").read_text())
    assert stored["skipped"] == {"picture unreadable": 2}
    state = load_file(made / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.slow
def test_steps_without_a_picture_that_can_be_read_teach_nothing(data, tmp_path):
    """Their loss is 0, not 0 / 0."""
    for n in range(8):
        (data[1] / f"{n}.png").write_bytes(b"no picture")
    recipe = toy_recipe("stage2", "train.steps=2")
    made = train_fusion(toy(), Data(*data), recipe, tmp_path / "o", skip_bad_rows=True)
    lines = [json.loads(line) for line in (tmp_path / "o/log.jsonl").read_text().splitlines()]
    assert 0 in [line["loss"] for line in lines]
    assert all(torch.isfinite(v).all() for v in load_file(made / "model.safetensors").values())


def test_bad_rows_are_refused_or_left_out_and_counted(tmp_path, caplog):
    rows = rows_of()
    rows[2]["image"] = "gone.png"
    rows[5]["conversations"][3]["value"] = " "
    rows[9]["conversations"] = turns(("human", "<image>"), ("gpt", "x"))
    file, images = write_rows(tmp_path, rows)
    (images / "gone.png").unlink()
    with pytest.raises(InputError, match="1 empty answer, 1 picture missing, 1 placeholder"):
        train_fusion(toy(), Data(file, images), toy_recipe("stage2"), tmp_path / "o")
    assert not (tmp_path / "o").exists()
    with caplog.at_level("INFO", "tokensieve.train"):
        train_fusion(
            toy(), Data(file, images), toy_recipe("stage2"), tmp_path / "o", skip_bad_rows=True
        )
    stored = json.loads((tmp_path / "o" / "train.json").read_text())
    assert stored["skipped"] == {"empty answer": 1, "picture missing": 1, "placeholder": 1}
    assert stored["data"]["rows"] == 7
    assert "left out: 1 empty answer, 1 picture missing, 1 placeholder" in caplog.text


def test_the_record_says_what_made_it(data, tmp_path):
    train_fusion(toy(), Data(*data), toy_recipe("stage2"), tmp_path / "o", seed=3)
    stored = json.loads((tmp_path / "o" / "train.json").read_text())
    assert stored["seed"] == 3
    assert stored["recipe"]["train"]["parts"] == "llm"
    assert stored["versions"]["transformers"]
    assert {"commit", "processes", "skipped", "model", "weights"} <= stored.keys()


def test_a_loss_that_is_no_number_ends_the_run(data, tmp_path):
    recipe = toy_recipe("stage2", "train.lr=1e30", "train.clip=0", "train.warmup=0")
    with pytest.raises(TrainingError, match=r"Expected a finite loss. Got nan .* Lower train\.lr"):
        train_fusion(toy(), Data(*data), recipe, tmp_path / "o")


@pytest.mark.slow
def test_bf16_runs_and_writes_bf16(data, tmp_path):
    out = train_fusion(
        toy(), Data(*data), toy_recipe("stage2-lora", "train.precision=bf16"), tmp_path / "o"
    )
    assert load_file(Path(out) / "model.safetensors").popitem()[1].dtype == torch.bfloat16
    assert load_file(tmp_path / "o/checkpoint-5/learned.safetensors").popitem()[1].dtype == (
        torch.float32
    )  # what learns keeps its digits


def test_a_projector_that_cannot_be_loaded(tmp_path):
    model = toy().model
    with pytest.raises(WeightsError, match=r"It is not there. Name the --out folder of stage 1"):
        load_projector(model, tmp_path)
    (tmp_path / "mm_projector.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="a pickle, which may run code"):
        load_projector(model, tmp_path / "mm_projector.bin")
    (tmp_path / "p.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match="Expected a complete safetensors file"):
        load_projector(model, tmp_path / "p.safetensors")


def test_a_missing_peft_names_the_extra(data, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"tokensieve\[fusion\]"):
        train_fusion(toy(), Data(*data), toy_recipe("stage2-lora"), tmp_path / "o")


def test_out_may_not_be_a_file(data, tmp_path):
    with pytest.raises(ConfigError, match="Got the file"):
        train_fusion(toy(), Data(*data), toy_recipe("stage2"), Path(data[0]))
