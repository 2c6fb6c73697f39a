"""The embedded model: it loads in three ways, reads, and is lost without its picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from tokensieve.data.synth import Picture, generate
from tokensieve.errors import ConfigError, UnknownNameError, WeightsError
from tokensieve.hf import load
from tokensieve.hf.load import load_model
from tokensieve.hf.models.nano import NANO, load_nano

needs_weights = pytest.mark.skipif(not (NANO / "config.json").exists(), reason="run `make nano`")


def ask(
    model: PreTrainedModel, processor: ProcessorMixin, picture: Picture, number: int
) -> tuple[str, str, dict[str, torch.Tensor]]:
    question = picture.questions[number]
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    talk = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    inputs = processor(images=picture.image, text=text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=6)
    tail = out[0, inputs["input_ids"].shape[1] :]
    return processor.decode(tail, skip_special_tokens=True), question.answer, inputs


@needs_weights
def test_it_reads_pages_and_scenes() -> None:
    model, processor = load_nano()
    right = []
    for kind in ("plain", "scene"):
        for seed in range(8):
            picture = generate(kind, seed, "test")
            for number in range(2):
                got, expected, _ = ask(model, processor, picture, number)
                right.append(got == expected)
    assert sum(right) >= 0.75 * len(right)


@needs_weights
def test_a_picture_is_256_tokens() -> None:
    model, processor = load_nano()
    _, _, inputs = ask(model, processor, generate("plain", 0, "test"), 0)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 256
    assert model.get_image_features(inputs["pixel_values"]).pooler_output[0].shape == (256, 128)


@needs_weights
@pytest.mark.parametrize("size", [(192, 192), (384, 192), (300, 500)])
def test_next_variant_has_as_many_placeholders_as_rows(size: tuple[int, int]) -> None:
    model, processor = load_nano("llava-next")
    image = generate("plain", 0, "test").image.resize(size)
    text = "<image>What is KX?<answer>"
    inputs = processor(images=image, text=text, return_tensors="pt")
    placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
    with torch.no_grad():
        rows = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        out = model.generate(**inputs, max_new_tokens=4)
    assert sum(len(part) for part in rows.pooler_output) == placeholders > 256
    assert out.shape[1] > inputs["input_ids"].shape[1]


@needs_weights
def test_weights_are_small_and_loadable_in_other_precisions() -> None:
    assert sum(path.stat().st_size for path in NANO.iterdir()) < 16 * 2**20
    model, _ = load_nano(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_control_differs_in_the_reader_only() -> None:
    usual, control = load_nano()[0].state_dict(), load_nano("control")[0].state_dict()
    for name, weight in usual.items():
        same = torch.equal(weight, control[name])
        assert same == ("vision_tower" in name), name


def test_unknown_variant_and_missing_weights_are_clear(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'llava-next'"):
        load_nano("llava-nxt")
    with pytest.raises(WeightsError, match="make nano"):
        load_nano(path=tmp_path)


@pytest.mark.parametrize(
    "broken", ["model.safetensors", "processor_config.json", "newline.safetensors"]
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, broken: str) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(NANO, mine)
    (mine / broken).write_bytes((mine / broken).read_bytes()[:20])
    if broken == "processor_config.json":
        (mine / broken).unlink()
    with pytest.raises(WeightsError, match="Expected whole files of nano"):
        load_nano("llava-next", path=mine)


def test_the_control_lies_beside_its_nano(tmp_path: Path) -> None:
    shutil.copytree(NANO, tmp_path / "mine")
    with pytest.raises(WeightsError, match=r"mine-control.*make control"):
        load_nano("control", path=tmp_path / "mine")


def test_what_it_is_computed_in_and_where() -> None:
    assert load_model("nano", "bfloat16").model.dtype is torch.bfloat16
    reader = f"nano+{NANO.with_name('nano-control') / 'reader.safetensors'}"
    assert load_model(reader, "bfloat16").model.dtype is torch.bfloat16
    assert load_model("nano", device="meta").model.device.type == "meta"
    for name in ("nano", reader, "runs/nowhere"):
        with pytest.raises(UnknownNameError, match="dtype to compute in 'float7'"):
            load_model(name, "float7")
        with pytest.raises(ConfigError, match=r"Expected a device of this machine.* Got 'tpu:7'"):
            load_model(name, device="tpu:7")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_where_the_device_is_fast_in_it(
    tmp_path: Path, half: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load_nano(dtype=half)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for fast, expected in ((False, torch.float32), (True, half)):
        monkeypatch.setattr(load, "fast_in", lambda device, dtype, fast=fast: fast)
        assert load_model(str(tmp_path), device="cpu").model.dtype is expected
        assert load_model(str(tmp_path), "float16", "cpu").model.dtype is torch.float16
