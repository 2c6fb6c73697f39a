"""Cutting receipts into crops, and the share of text area kept."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from lab.studies.receipts import __main__ as receipts
from lab.studies.receipts.overlay import dim, stitch
from lab.studies.receipts.tiles import (
    Tiling,
    cut,
    half_of,
    load_receipt,
    read_boxes,
    receipt_names,
)
from tokensieve.errors import ConfigError, InputError, UnknownNameError
from tokensieve.evaluate.config import Variant
from toys.eval_tiny import tiny_subject

SMALL = Tiling(side=8, patch=4)
REAL = Path(os.environ.get("TOKENSIEVE_RECEIPTS", "../shared/data/receipts"))  # img/ and box/


def _page(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_crops_put_together_are_the_page() -> None:
    page = _page(11, 21)
    receipt = cut(page, np.array([[0.0, 0, 4, 4]]), "r", SMALL)
    assert receipt.layout == (2, 3)
    np.testing.assert_array_equal(stitch(receipt.crops, receipt.layout)[:11, :21], page)


def test_text_area_per_token_matches_a_slow_loop() -> None:
    """Every pixel of a box is counted once, at its token, also where boxes overlap."""
    page, boxes = _page(14, 19), np.array([[2.0, 1, 9, 6], [5, 3, 30, 9]])
    receipt = cut(page, boxes, "r", SMALL)
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
    receipt = cut(page, np.array([[0.0, 0, 4, 4]]), "r", SMALL)
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
    suite = receipts.ReceiptSuite(
        "receipts", "tiny", keeps=(0.2, 0.5, 1.0),
        variants=(
            Variant("random", "random", per_seed={"seed": [0, 1]}),
            Variant("pixel-variance", "pixel-variance"),
            Variant("divprune", "divprune"),
            Variant("oracle-text", "oracle-text"),
        ),
    )  # fmt: skip
    record = receipts.measure(suite, folder, "val", overlays=tmp_path / "over")
    assert record["config"]["receipts"] == 3
    shares = {
        (row["variant"], row["seed"], keep): value["mean"]
        for row in record["rows"]
        for keep, value in row["text_kept"].items()
    }
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


def test_bad_folder_and_suite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected receipts as"):
        receipt_names(tmp_path, "val")
    with pytest.raises(InputError, match="cover nothing"):
        cut(_page(8, 8), np.array([[20.0, 20, 30, 30]]), "r", SMALL)
    with pytest.raises(ConfigError, match="Expected a receipts suite"):
        receipts.load(tmp_path / "none.json")
    path = tmp_path / "s.json"
    path.write_text('{"suite": "s", "model": "nano", "variants": [], "texthight": 3}')
    with pytest.raises(UnknownNameError, match="Did you mean 'text_height'"):
        receipts.load(path)


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
