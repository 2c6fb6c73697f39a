"""Cutting receipts into crops, and the share of text area kept."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent))
from lab.studies.receipts import __main__ as receipts
from lab.studies.receipts import page as receipts_page
from lab.studies.receipts import reading
from lab.studies.receipts.overlay import dim, stitch
from lab.studies.receipts.suite import Documents, ReceiptSuite, load, opened, parser_of
from lab.studies.receipts.tiles import (
    Tiling,
    covered,
    cut,
    half_of,
    load_receipt,
    receipt_names,
    word_shares,
)
from tokensieve.errors import ConfigError, InputError, MissingPackageError, UnknownNameError
from tokensieve.evaluate import tesseract
from tokensieve.evaluate.config import Variant
from tokensieve.evaluate.receipts import read_boxes, words_of
from toys.eval_tiny import tiny_subject

SMALL = Tiling(side=8, patch=4)
REAL = Path(os.environ.get("TOKENSIEVE_RECEIPTS", "../shared/data/receipts"))  # img/ and box/


def _page(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _told(*boxes: tuple[float, ...], text: str = "x") -> list[tuple[np.ndarray, str]]:
    return [(np.array(box, dtype=float), text) for box in boxes]


def test_crops_put_together_are_the_page() -> None:
    page = _page(11, 21)
    receipt = cut(page, _told((0, 0, 4, 4)), "r", SMALL)
    assert receipt.layout == (2, 3)
    np.testing.assert_array_equal(stitch(receipt.crops, receipt.layout)[:11, :21], page)


def test_text_area_per_token_matches_a_slow_loop() -> None:
    """Every pixel of a box is counted once, at its token, also where boxes overlap."""
    page, boxes = _page(14, 19), [(2, 1, 9, 6), (5, 3, 30, 9)]
    receipt = cut(page, _told(*boxes), "r", SMALL)
    slow = np.zeros((2 * 3, 4))
    for y in range(14):
        for x in range(19):
            if any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes):
                crop = (y // 8) * 3 + x // 8
                slow[crop, (y % 8) // 4 * 2 + (x % 8) // 4] += 1
    np.testing.assert_array_equal(receipt.text.numpy(), slow)
    assert receipt.text_kept(torch.ones(6, 4, dtype=torch.bool)) == 1
    assert receipt.text_kept(torch.zeros(6, 4, dtype=torch.bool)) == 0
    half = torch.zeros(6, 4, dtype=torch.bool)
    half[0] = True
    assert receipt.text_kept(half) == pytest.approx(slow[0].sum() / slow.sum())


def test_padding_is_invalid_and_paper_coloured() -> None:
    page = np.full((9, 8, 3), 200, dtype=np.uint8)
    receipt = cut(page, _told((0, 0, 4, 4)), "r", SMALL)
    assert receipt.valid[0].all()
    assert receipt.valid[1].tolist() == [True, True, False, False]
    assert (receipt.crops == 200).all()


def test_text_is_scaled_to_the_asked_height(tmp_path: Path) -> None:
    folder = _folder(tmp_path, names=("a",), height=20)
    receipt = load_receipt(folder, "a", Tiling(192, 12, 10.0))
    assert receipt.size == (150, 100)


def test_overlay_dims_dropped_tokens_only() -> None:
    page = _page(8, 16)
    kept = torch.zeros(2, 4, dtype=torch.bool)
    kept[1, 2] = True  # second crop, lower left token
    seen = dim(page, kept, (1, 2), SMALL)
    np.testing.assert_array_equal(seen[4:8, 8:12], page[4:8, 8:12])
    seen[4:8, 8:12] = page[4:8, 8:12] // 4
    np.testing.assert_array_equal(seen, page // 4)


def test_halves_are_fixed_and_both_filled() -> None:
    names = [f"{i:03d}" for i in range(200)]
    halves = [half_of(name) for name in names]
    assert halves == [half_of(name) for name in names]
    assert 60 < halves.count("val") < 140
    # Made once by this very function: a changed split would leak choices into the report.
    assert [half_of(n) for n in ("002", "003", "005", "008")] == EXPECTED_HALVES


EXPECTED_HALVES = ["test", "val", "val", "val"]


def test_measure_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budget over all crops; random keeps its share; nothing beats the ceiling."""
    monkeypatch.setattr(receipts, "load_subject", lambda _: tiny_subject())
    names = [n for n in map(str, range(30)) if half_of(n) == "val"][:3]
    folder = _folder(tmp_path, names=names, height=20)
    suite = ReceiptSuite(
        "receipts", "tiny", keeps=(0.2, 0.5, 1.0),
        variants=(
            Variant("random", "random", per_seed={"seed": [0, 1]}),
            Variant("pixel-variance", "pixel-variance"),
            Variant("divprune", "divprune"),
            Variant("oracle-text", "oracle-text"),
        ),
    )  # fmt: skip
    documents = Documents.receipts(folder, "val")
    record = receipts.measure(suite, documents, "val", overlays=tmp_path / "over")
    assert (record["config"]["number"], record["config"]["documents"]) == (3, "receipts")
    shares = {
        (row["variant"], row["seed"], keep): value["mean"]
        for row in record["rows"]
        for keep, value in row["area_kept"].items()
    }
    assert all(row["words_kept"]["1"]["mean"] == 1 for row in record["rows"])
    assert all(len(row["words_by_document"]["0.2"]) == 3 for row in record["rows"])
    for (name, _, keep), share in shares.items():
        assert 0 <= share <= shares["oracle-text", 0, keep], name
        assert keep != "1" or share == 1
    assert shares["random", 0, "0.5"] == pytest.approx(0.5, abs=0.35)
    assert len(list((tmp_path / "over").glob("*.png"))) == 3
    assert record["table"][1][0] == "random"
    assert "seeds" in record["table"][1][1]
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[", "Expected boxes of text"), ('[{"bx": 1}]', "Expected boxes of text"),
     ('[{"box": [5, 5, 2, 9]}]', "right > left"), ("[]", "right > left")],
)  # fmt: skip
def test_bad_boxes(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_boxes(path)


def test_words_share_their_lines_width_by_characters() -> None:
    found = words_of(_told((10, 0, 70, 9), text="AB  CDE"))  # 7 characters, the fourth a blank
    assert [word for _, word in found] == ["AB", "CDE"]
    wide = 60 / 7
    np.testing.assert_allclose(found[0][0], [10, 0, 10 + 2 * wide, 9])
    np.testing.assert_allclose(found[1][0], [10 + 4 * wide, 0, 70, 9])
    assert words_of(_told((0, 0, 9, 9), text="")) == []


def test_word_shares_match_a_slow_loop() -> None:
    """Over crops' edges, on a page that ends inside a crop, beside a base crop."""
    generator = torch.Generator().manual_seed(0)
    for base in (False, True):
        tiling = Tiling(side=8, patch=4, base=base)
        lines = [(1.0, 1, 17, 6), (0, 7, 30, 12)]
        receipt = cut(_page(14, 19), _told(*lines, text="ab cd"), "r", tiling)
        assert receipt.said == ("ab", "cd", "ab", "cd")
        kept = torch.rand(receipt.valid.shape, generator=generator) < 0.5
        for box, share in zip(receipt.words, word_shares(receipt, kept, tiling), strict=True):
            left, top, right, bottom = box
            assert 0 <= left < right <= 19
            hits = [
                bool(kept[int(base) + (y // 8) * 3 + x // 8, (y % 8) // 4 * 2 + (x % 8) // 4])
                for y in range(top, bottom)
                for x in range(left, right)
            ]
            assert share == pytest.approx(np.mean(hits))
        assert receipt.text.shape == receipt.valid.shape == (6 + base, 4)
        assert not base or receipt.text[0].sum() == 0


def test_a_base_crop_is_the_whole_page_made_small() -> None:
    page = np.zeros((16, 8, 3), dtype=np.uint8)
    page[8:] = 250
    receipt = cut(page, _told((0, 0, 8, 8)), "r", Tiling(side=8, patch=4, base=True))
    assert receipt.valid[0].tolist() == [True, False, True, False]  # 8 x 4 of 8 x 8 pixels
    assert (receipt.crops[0, :3, :4] < 10).all()
    assert (receipt.crops[0, 5:, :4] > 240).all()
    assert (receipt.crops[0, :, 4:] == 125).all()  # padding in the paper's colour: the median


def test_dropped_tokens_are_painted_in_the_papers_colour() -> None:
    page = np.full((8, 14, 3), 200, dtype=np.uint8)
    page[1:3, 1:13] = 10
    kept = torch.zeros(2, 4, dtype=torch.bool)
    kept[0, 0] = True
    seen = reading.painted(page, covered(kept, (1, 2), SMALL))
    assert seen.shape == page.shape
    np.testing.assert_array_equal(seen[:4, :4], page[:4, :4])
    seen[:4, :4] = 200
    assert (seen == 200).all()


def test_smaller_pictures_have_the_tokens_or_the_pixels() -> None:
    tokens, pixels = reading.smaller((96, 48), 8, 0.25, Tiling(48, 12))
    assert tokens == (48, 24)  # 4 x 2 tokens of 12 pixels
    assert pixels == (48, 24)
    tokens, pixels = reading.smaller((96, 48), 7, 0.2, Tiling(48, 12))
    assert (tokens[0] // 12) * (tokens[1] // 12) <= 7
    assert pixels[0] * pixels[1] == pytest.approx(0.2 * 96 * 48, rel=0.05)
    assert reading.shrunk(_page(96, 48), tokens).shape == (96, 48, 3)


def test_words_count_in_capitals_without_marks_each_as_often_as_it_stands() -> None:
    sought = tesseract.words(["Total: 9.50", "a TOTAL (rm)"])
    assert sought == {"TOTAL": 2, "9.50": 1, "RM": 1}
    assert tesseract.share(sought, tesseract.words(["total rm rm 9.51"])) == 0.5
    assert tesseract.share(sought, tesseract.words([])) == 0
    with pytest.raises(InputError, match="Expected words to look for"):
        tesseract.share(tesseract.words(["x"]), sought)


def test_without_the_engine_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingPackageError, match="Install Debian's package tesseract-ocr"):
        tesseract.read(_page(8, 8))


@pytest.mark.skipif(not tesseract.there(), reason="the engine is optional")
def test_the_engine_reads_a_picture(tmp_path: Path) -> None:
    page = Image.new("RGB", (300, 80), "white")
    ImageDraw.Draw(page).text((20, 20), "TOTAL 41.80", fill="black", font_size=30)
    assert tesseract.words([tesseract.read(np.asarray(page))]) == {"TOTAL": 1, "41.80": 1}


def test_what_is_read_becomes_a_record_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine here reads one word for each shade but the paper's that it sees."""
    monkeypatch.setattr(reading, "load_subject", lambda _: tiny_subject())
    monkeypatch.setattr(receipts, "load_subject", lambda _: tiny_subject())
    monkeypatch.setattr(tesseract, "version", lambda: "tesseract 0")
    monkeypatch.setattr(tesseract, "words", lambda texts: Counter(" ".join(texts).split()))
    monkeypatch.setattr(tesseract, "read", lambda page: "x" if (page < 100).any() else "no")
    names = [n for n in map(str, range(30)) if half_of(n) == "test"][:2]
    folder, out = _folder(tmp_path, names=names, height=20), tmp_path / "results"
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps({
        "suite": "receipts", "model": "tiny", "keeps": [0.2], "read_keeps": [0.2],
        "read": ["oracle-text", "stride"],
        "variants": [{"name": name, "method": name} for name in ("oracle-text", "stride")],
    }))  # fmt: skip
    told = ["--data", str(folder), "--suite", str(suite), "--out", str(out)]
    receipts.main(told)
    reading.main(told)
    record = json.loads((out / "receipts" / "tiny--read-receipts-test.json").read_text())
    shares = {row["variant"]: row["labels"]["mean"] for row in record["rows"]}
    assert shares["whole picture"] == shares["oracle-text"] == 1
    assert set(shares) == {"whole picture", "oracle-text", "stride", *reading.SMALLER}
    receipts_page.main(["--results", str(out), "--root", str(tmp_path)])
    text = (tmp_path / "docs/results/receipts.md").read_text()
    assert text.count("### tiny, 2 receipts for the report (`test`)") == 2
    assert "| whole picture | 100.0 (100.0–100.0) |" in text
    with pytest.raises(InputError, match="Run `make receipts`"):
        receipts_page.main(["--results", str(tmp_path), "--root", str(tmp_path)])


@pytest.mark.parametrize("told", [[], ["--data", "x", "--pages", "3"]])
def test_one_sort_of_documents_is_asked_for(told: list[str]) -> None:
    with pytest.raises(ConfigError, match="Expected --data FOLDER for receipts or --pages N"):
        opened(parser_of("").parse_args(told))


def test_bad_folder_and_suite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected receipts as"):
        receipt_names(tmp_path, "val")
    with pytest.raises(InputError, match="cover nothing"):
        cut(_page(8, 8), _told((20, 20, 30, 30)), "r", SMALL)
    with pytest.raises(ConfigError, match="Expected a receipts suite"):
        load(tmp_path / "none.json")
    path = tmp_path / "s.json"
    path.write_text('{"suite": "s", "model": "nano", "variants": [], "texthight": 3}')
    with pytest.raises(UnknownNameError, match="Did you mean 'text_height'"):
        load(path)


@pytest.mark.skipif(not REAL.exists(), reason="the receipts are not part of the project")
def test_real_receipts_are_read() -> None:
    names = receipt_names(REAL, "val")
    receipt = load_receipt(REAL, names[0], Tiling())
    assert 0.1 < float((receipt.text > 0)[receipt.valid].float().mean()) < 0.7


def _folder(root: Path, names: tuple[str, ...] | list[str], height: int) -> Path:
    """Noise with a dark block as text, its box `height` pixels tall, 200 x 300 pixels."""
    folder = root / "data"
    for sub in ("img", "box"):
        (folder / sub).mkdir(parents=True)
    for name in names:
        page = np.full((300, 200, 3), 230, dtype=np.uint8)
        page[100 : 100 + height, 20:160] = _page(height, 140)
        Image.fromarray(page).save(folder / "img" / f"{name}.jpg")
        box = [{"box": [20, 100, 160, 100 + height], "text": "x"}]
        (folder / "box" / f"{name}.json").write_text(json.dumps(box))
    return folder
