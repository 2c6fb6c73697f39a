"""Training of nano 2: what a batch asks, and a run cut in two is the same run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lab.nano.clip import normalise
from lab.nano.lm import Reader
from lab.nano.muon import Muon
from lab.nano2 import keep
from lab.nano2.asking import EOS, PATCHES, VOCABULARY, askable, example, pack, show
from lab.nano2.assemble import assemble, model_of, tokenizer
from lab.nano2.encoder import DenseEncoder, EncoderRecipe, loss_of
from lab.nano2.features import cache, load, trained
from lab.nano2.judge import Cell, judge, stays
from lab.nano2.pages import page
from lab.nano2.ship import ship
from lab.nano2.train_encoder import rate_at, train
from lab.nano2.train_reader import ReaderRecipe
from lab.nano2.train_reader import train as train_reader
from tokensieve.errors import TrainingError
from tokensieve.hf.models.nano import load_nano
from tokensieve.hf.models.processors import load_processor
from toys.fonts import with_fonts

TEXT = {"kind": "lines", "text": [3, 4, 9, 30], "asked": [["ab", "7", [3, 4]], ["c", "41", [9]]]}
SCENE = {"kind": "scene", "text": [], "asked": [["background", "red", []]]}
SMALL = EncoderRecipe(width=32, layers=1, heads=2, pages=1, check_every=4, check_pages=1)


def test_a_question_ends_in_its_answer() -> None:
    question = example(0, TEXT).asked[1]
    names = {number: token for token, number in VOCABULARY.items()}
    assert [names[i] for i in question.ids] == ["c", "?", "<answer>", "4", "1", "</s>"]
    assert (question.begin, question.named, question.ids[-1]) == (3, 1, EOS)


def test_what_is_asked_is_shown_then_text_then_paper() -> None:
    one, rng = example(0, TEXT), np.random.default_rng(0)
    for tokens in (2, 3, 4, 9):
        shown, asked = show(rng, one, tokens, 2)
        assert len(shown) == len(set(shown.tolist())) == tokens
        assert (np.diff(shown) > 0).all()
        assert asked
        assert all(set(question.needs) <= set(shown.tolist()) for question in asked)
        assert tokens < 4 or set(one.text) <= set(shown.tolist())
    assert len(show(rng, one, 2, 2)[1]) == 1
    assert show(rng, one, PATCHES, 2)[0].tolist() == list(range(PATCHES))


def test_a_scene_is_asked_about_once_much_is_shown() -> None:
    assert not askable(example(0, SCENE), 128)
    assert askable(example(0, SCENE), PATCHES)


def test_the_loss_is_on_answers_and_a_little_on_the_keys_letters() -> None:
    batch = pack(np.random.default_rng(1), [example(5, TEXT)], 4, 1, 0.25, renumber=0.0)
    letters = batch.ids[0].tolist().index(VOCABULARY["?"])
    answer = len(batch.ids[0]) - letters - 1
    assert batch.rows.tolist() == [5]
    assert batch.weights[0].tolist() == [0.25] * (letters - 1) + [0.0] * 2 + [1.0] * answer
    assert batch.start.tolist() == [PATCHES]
    assert pack(np.random.default_rng(1), [example(5, TEXT)], 4, 1, 0, 1.0).start.tolist() == [4]


def test_the_rate_rises_stands_and_falls() -> None:
    recipe = EncoderRecipe(steps=100, decay_from=80, warmup=10, rate=1.0)
    rates = [rate_at(step, recipe) for step in (0, 9, 10, 80, 90, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.5, 0.0])
    again = [rate_at(step, recipe, begun=40) for step in (40, 49, 50, 90)]
    assert again == pytest.approx([0.1, 1.0, 1.0, 0.5])


def test_a_crop_at_the_whole_pages_place_is_the_page() -> None:
    torch.manual_seed(0)
    model = DenseEncoder(SMALL).eval()
    pixels = normalise(torch.randint(0, 256, (1, 336, 336, 3), dtype=torch.uint8))
    with torch.no_grad():
        torch.testing.assert_close(
            model.features(pixels, torch.arange(PATCHES)[None]), model.features(pixels)
        )


def test_a_checkpoint_keeps_its_names(tmp_path: Path) -> None:
    """Trainings take weeks of idle time: a file of last month must be gone on with."""
    torch.manual_seed(0)
    model, file = DenseEncoder(SMALL), tmp_path / "encoder.safetensors"
    begin = {"step": 0, "level": 2, "recipe": SMALL.asdict()}
    run = keep.Training(file, model, Muon(model, 1.0), begin)
    labels = torch.zeros(1, PATCHES, 4, dtype=torch.int64)
    codes, seen = model(pixels := torch.rand(1, 3, 336, 336))
    run.descend(loss_of(codes, seen, labels, pixels, SMALL)[0], 0.1, 0.9)
    run.save()
    found = load_file(file)
    weights = set(model.state_dict())
    assert {f"{head}.{name}" for head in ("model", "averaged") for name in weights} < set(found)
    rest = {name.split(".")[0] for name in found} - {"model", "averaged"}
    assert rest == {"optimiser"}
    matrix, other = (
        {name.split(".")[2] for name in found if name.startswith(f"optimiser.{number}.")}
        for number in (0, len(weights) - 1)
    )
    assert (matrix, other) == ({"step", "momentum"}, {"step", "exp_avg", "exp_avg_sq"})
    assert keep.state_of(file) == {**begin, "step": 1}


@with_fonts
def test_a_run_cut_in_two_is_the_same_run(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "whole", 5)
    for until in (3, 5):
        train(SMALL, tmp_path / "cut", until)
    whole, cut = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=0)
    assert keep.state_of(tmp_path / "cut" / "encoder.safetensors")["step"] == 5
    with pytest.raises(TrainingError, match="Got another seed"):
        train(replace(SMALL, seed=1), tmp_path / "cut", 6)


@with_fonts
def test_a_moved_page_is_asked_what_no_shift_loses() -> None:
    drawn = page(0, "val", 3, 0, kind="lines")
    still, far = stays(drawn, 0), stays(drawn, 13)
    assert still is not None
    assert far is not None
    assert still.asked == far.asked
    assert 0 < len(far.asked) <= len(drawn.asked)
    np.testing.assert_array_equal(far.image[13:, 13:], drawn.image[:-13, :-13])
    np.testing.assert_array_equal(far.places, drawn.places + 13)


@with_fonts
def test_shipped_weights_are_gone_on_from_at_their_step(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "one", 2)
    shipped = tmp_path / "weights" / "encoder.safetensors"
    ship(tmp_path / "one" / "encoder.safetensors", shipped, 1)
    record = json.loads(shipped.with_suffix(".json").read_text())
    assert record["bytes"] < shipped.stat().st_size < record["bytes"] + 10_000
    weights, state = trained(shipped)  # and features are had from them as from the checkpoint
    assert state["recipe"] == SMALL.asdict()
    for name, value in trained(tmp_path / "one" / "encoder.safetensors")[0].state_dict().items():
        torch.testing.assert_close(weights.state_dict()[name], value, rtol=1e-3, atol=1e-3)
    train(SMALL, tmp_path / "two", 2, begin=shipped)
    assert not (tmp_path / "two" / "encoder.safetensors").exists()  # nothing left to do
    train(SMALL, tmp_path / "two", 3, begin=shipped)
    state = keep.state_of(tmp_path / "two" / "encoder.safetensors")
    assert (state["step"], state["recipe"]) == (3, SMALL.asdict())


@with_fonts
def test_the_reader_trains_on_what_the_encoder_left(tmp_path: Path) -> None:
    train(SMALL, tmp_path, 1)
    for split in ("train", "val"):
        cache(tmp_path / "encoder.safetensors", tmp_path / "features", split, 2, 0, True)
    features, examples = load(tmp_path / "features", "train")
    assert features.shape[1:] == (PATCHES, 32)
    assert max(one.row for one in examples) < len(features)
    recipe = ReaderRecipe(width=32, layers=1, heads=2, stages=((16, 2),), check_every=2)
    for out, stops in (("whole", (3,)), ("cut", (1, 3))):
        for until in stops:
            train_reader(recipe, tmp_path / "features", tmp_path / out, until)
    whole, cut = (load_file(tmp_path / name / "reader.safetensors") for name in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=0)
    says_the_same_assembled(tmp_path)


def says_the_same_assembled(tmp_path: Path) -> None:
    """The assembled model's logits are those of the reader on cached features."""
    model = model_of(tmp_path / "encoder.safetensors", tmp_path / "cut" / "reader.safetensors")
    features, examples = load(tmp_path / "features", "train")
    one = examples[0]
    batch = pack(np.random.default_rng(0), [one], PATCHES, 1, 0.0, renumber=0.0)
    pixels = normalise(torch.from_numpy(page(0, "train", one.row, 0).image[None].copy()))
    image = torch.full((1, PATCHES), VOCABULARY["<image>"])
    with torch.no_grad():
        mine = Reader(model)(torch.from_numpy(features[one.row][None]).float(), batch)
        whole = model(input_ids=torch.cat([image, batch.ids], 1), pixel_values=pixels).logits
    torch.testing.assert_close(whole[:, PATCHES:], mine, rtol=0, atol=5e-3)  # features in fp16
    out = tmp_path / "assembled"
    assemble(tmp_path / "encoder.safetensors", tmp_path / "cut" / "reader.safetensors", out)
    crops, tiles = load_nano("llava-next", path=out)
    wide = Image.new("RGB", (672, 336), (200, 200, 200))
    talk = tiles(images=[wide], text=["<image>c?<answer>"], return_tensors="pt")
    assert talk["pixel_values"].shape[1] == 3  # the whole and two crops, side by side
    assert crops(**talk).logits.shape[1] == talk["input_ids"].shape[1] > 2 * PATCHES
    found = judge(model, "test", 2, 0, [Cell("scene", True), Cell("lines", False, False, 3)])
    assert [cell["right"] for cell in found.values()] == [0, 0]
    assert list(found) == ["scene, known fonts", "lines, unknown fonts, light, moved 3 px"]
    processor = load_processor(str(out), model.config)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Total?"}]}]
    prompt = processor.apply_chat_template(talk)
    inputs = processor(images=[page(0, "train", 0, 0).image], text=[prompt], return_tensors="pt")
    assert (inputs["input_ids"] == VOCABULARY["<image>"]).sum() == PATCHES
    torch.testing.assert_close(
        inputs["pixel_values"],
        normalise(torch.from_numpy(page(0, "train", 0, 0).image[None].copy())),
    )


def test_the_tokenizer_reads_characters_as_the_batches_do() -> None:
    made, question = tokenizer(), example(0, TEXT).asked[1]
    said = made("c?<answer>41</s>", add_special_tokens=False)["input_ids"]
    assert said == question.ids
    assert made.decode(said[3:], skip_special_tokens=True) == "41"
    assert made.decode(made("a B")["input_ids"]) == "a B"
