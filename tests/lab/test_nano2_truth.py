"""A reader begins on what a perfect encoder would say, and goes on behind a trained one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lab.nano.lm import Reader
from lab.nano2 import features as cached
from lab.nano2.asking import PATCHES, VOCABULARY, example, pack
from lab.nano2.encoder import CODES, EncoderRecipe, build_encoder
from lab.nano2.features import cache, load
from lab.nano2.keep import averaged_in, state_of
from lab.nano2.labels import SLOTS, slots
from lab.nano2.pages import page
from lab.nano2.receipts import Line, alone, among, lines_of
from lab.nano2.train_reader import ReaderRecipe, begun, build_llava, rate_at, train
from lab.nano2.truth import another_alphabet, exchanged, read_as, said, tables
from lab.nano2.words import CHARS
from toys.fonts import with_fonts

TINY = ReaderRecipe(
    width=32,
    layers=1,
    heads=2,
    stages=((16, 2), (576, 1)),
    check_every=2,
    last=4,
    falling=2,
    fit=20,
)


@with_fonts
def test_every_character_can_be_told_from_the_truth(tmp_path: Path) -> None:
    cache(None, tmp_path, "val", 3, 0, True)
    features, _ = load(tmp_path, "val")
    codes_KNC, _ = tables(features.shape[-1])
    for row in range(3):
        drawn = page(0, "val", row, 0)
        true = slots(drawn.places, drawn.codes).reshape(-1, SLOTS)
        one = (true > 0).sum(-1) == 1  # among several, sums of vectors are less plain
        near = torch.from_numpy(features[row].astype(np.float32)) @ codes_KNC[0].T
        assert (near.argmax(-1).numpy()[one] == true[one, 0]).mean() > 0.9


@with_fonts
def test_exchanged_characters_stand_on_the_page_and_in_what_is_asked_alike(tmp_path: Path) -> None:
    cache(None, tmp_path, "train", 2, 0, True)
    features, examples = load(tmp_path, "train")
    codes = cached.load_codes(tmp_path, "train")
    one = next(e for e in examples if e.asked and all(q.needs for q in e.asked))
    batch = pack(np.random.default_rng(0), [one], PATCHES, 3, 0.0, renumber=0.0)
    shown, page_codes = torch.from_numpy(features[[one.row]]).float(), codes[[one.row]]
    there = torch.from_numpy(page_codes)
    rng = np.random.default_rng(4)
    new, asked = exchanged(rng, shown, there, batch, [0])
    alphabet = torch.tensor(another_alphabet(np.random.default_rng(4)))
    assert sorted(alphabet.tolist()) == list(range(CODES))
    width, moved = shown.shape[-1], alphabet[there.long()]
    torch.testing.assert_close(new, shown - said(there, width) + said(moved, width))
    first = VOCABULARY[CHARS[0]] - 1
    for before, after in ((batch.ids, asked.ids), (batch.targets, asked.targets)):
        for a, b in zip(before[0].tolist(), after[0].tolist(), strict=True):
            assert b == (alphabet[a - first] + first if a > first else a)
    assert (asked.ids != batch.ids).any()
    still, same = exchanged(rng, shown, there, batch, [])
    assert torch.equal(still, shown)
    assert torch.equal(same.ids, batch.ids)


def test_the_map_of_least_squares_is_the_one_that_made_them() -> None:
    rng = torch.Generator().manual_seed(1)
    truth, turn = torch.randn(500, 8, generator=rng), torch.randn(8, 8, generator=rng)
    given = (truth - 3.0) @ torch.linalg.inv(turn)
    weight, bias = read_as(given, truth)
    torch.testing.assert_close(given @ weight + bias, truth, rtol=0, atol=0.05)


@with_fonts
def test_a_reader_of_the_truth_reads_a_perfect_encoder_as_well(tmp_path: Path) -> None:
    cache(None, tmp_path / "truth", "train", 2, 0, True)
    cache(None, tmp_path / "truth", "val", 2, 0, True)
    train(TINY, tmp_path / "truth", tmp_path / "first", 3)
    turned = tmp_path / "turned"
    turned.mkdir()
    features, examples = load(tmp_path / "truth", "train")
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((features.shape[-1],) * 2))[0]
    other = (features.astype(np.float64) @ turn * 2 + 0.5).astype(np.float16)
    np.save(turned / "train-0000.npy", other)
    for name in ("made.json", "train-0000.json"):
        (turned / name).write_text((tmp_path / "truth" / name).read_text())
    first = tmp_path / "first" / "reader.safetensors"
    reader, state = begun(TINY, turned, first)
    assert (state["step"], state["at"], state["since"]) == (0, 1, 0)
    old = Reader(build_llava(build_encoder(EncoderRecipe()).config, TINY))
    old.load_state_dict(averaged_in(first))
    batch = pack(np.random.default_rng(0), [examples[0]], PATCHES, 2, 0.0, renumber=0.0)
    shown = torch.from_numpy(features[examples[0].row][None]).float()
    same = torch.from_numpy(other[examples[0].row][None]).float()
    with torch.no_grad():
        wanted, plain = old(shown, batch), old(same, batch)
        found = reader(same, batch)
    # without the map it would have read otherwise; what is left is fp16's
    assert (found - wanted).abs().max() < 0.2 * (plain - wanted).abs().max()


def test_the_rate_falls_at_the_end_of_the_last_stage_alone() -> None:
    recipe = ReaderRecipe(rate=1.0, warmup=10, last=100, falling=50)
    assert [rate_at(s, None, recipe) for s in (0, 9, 5000)] == pytest.approx([0.1, 1, 1])
    found = [rate_at(s, 1000, recipe) for s in (1000, 1050, 1075, 1100)]
    assert found == pytest.approx([1, 1, 0.5, 0])


@with_fonts
def test_training_ends_where_the_last_stage_does(tmp_path: Path) -> None:
    cache(None, tmp_path / "truth", "train", 2, 0, True)
    cache(None, tmp_path / "truth", "val", 2, 0, True)
    only = ReaderRecipe(width=32, layers=1, heads=2, stages=((16, 2),), last=3, falling=1)
    train(only, tmp_path / "truth", tmp_path / "out", 100)
    log = [json.loads(one) for one in (tmp_path / "out/reader.jsonl").read_text().splitlines()]
    assert log[0]["since"] == 0
    assert state_of(tmp_path / "out/reader.safetensors")["step"] == 3
    assert cached.level_of(tmp_path / "truth") == 0


def test_a_key_is_asked_in_any_case() -> None:
    entry = {"kind": "lines", "text": [], "asked": [[f"Key {k}", "1", [k]] for k in range(60)]}
    plain = example(0, entry).asked
    varied = example(0, entry, vary=True).asked
    same = [a.ids == b.ids for a, b in zip(plain, varied, strict=True)]
    assert 20 < sum(same) < 55
    lower, upper = (
        example(0, {**entry, "asked": [[f(q), a, n] for q, a, n in entry["asked"]]}).asked
        for f in (str.lower, str.upper)
    )
    for k, question in enumerate(varied):
        assert question.ids in (plain[k].ids, lower[k].ids, upper[k].ids)


BOXES = [
    ((10.0, 10.0, 60.0, 30.0), "TOTAL"),
    ((200.0, 12.0, 260.0, 31.0), "RM 9.50"),
    ((10.0, 40.0, 150.0, 60.0), "TEL: 03-55"),
    ((10.0, 70.0, 60.0, 90.0), "CASH"),
    ((10.0, 100.0, 60.0, 120.0), "CASH"),
    ((200.0, 100.0, 260.0, 120.0), "12.00"),
    ((10.0, 130.0, 90.0, 150.0), "SOLD BY"),
    ((200.0, 130.0, 260.0, 150.0), "JIM"),
]


def test_lines_of_a_receipt_are_keys_with_the_value_at_their_right() -> None:
    found = lines_of(BOXES)
    assert [(line.key, line.value) for line in found] == [
        ("TOTAL", "RM 9.50"),
        ("TEL", "03-55"),
        ("CASH", "12.00"),
    ]
    assert found[0].box == (10.0, 10.0, 260.0, 31.0)


def test_a_line_is_set_alone_or_among_its_neighbours() -> None:
    scan = Image.new("RGB", (300, 700), (240, 240, 240))
    ImageDraw.Draw(scan).rectangle((10, 18, 260, 22), fill=(0, 0, 0))
    ImageDraw.Draw(scan).rectangle((10, 108, 260, 112), fill=(0, 0, 0))
    line = Line("TOTAL", "RM 9.50", (10.0, 10.0, 260.0, 30.0))
    one, many = alone(scan, line), among(scan, line, BOXES)
    assert one.shape == many.shape == (336, 336, 3)
    dark_rows = [
        (np.diff((some < 128).all(-1)[:, 150].astype(int)) == 1).sum() for some in (one, many)
    ]
    assert dark_rows == [1, 2]
