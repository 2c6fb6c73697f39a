"""The gallery shows what was kept and says what was answered; its pictures are small."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.report import gallery
from tokensieve.hf.load import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loaded():
    return load_model("nano")


def test_a_panel_says_what_was_kept_and_whether_it_was_right(loaded) -> None:
    page = gallery.pieces()[0]
    picture, full, few = gallery.panels(loaded, page, [("full", 1.0), ("random", 0.02)])
    assert picture.lines == (page.question, f"Right answer: {page.right}")
    assert full.lines == ("256 of 256 tokens", f"{page.right}: right")
    assert few.title == "random, 2%"
    assert few.lines[0] == "5 of 256 tokens"
    assert few.lines[1].endswith(": wrong")


def test_pictures_without_a_question_are_only_shown(loaded) -> None:
    receipt = next(piece for piece in gallery.pieces() if piece.name == "receipt")
    _, kept = gallery.panels(loaded, receipt, [("stride", 0.2)])
    assert kept.lines == ("51 of 256 tokens",)


def test_the_pictures_of_the_page_are_there_and_small() -> None:
    page = (ROOT / "docs/results/gallery.md").read_text("utf-8")
    names = {piece.name for piece in gallery.pieces()}
    for name in [f"gallery-{name}" for name in names]:
        assert f"../figures/{name}.png" in page
        assert (ROOT / f"docs/figures/{name}.png").stat().st_size < 300_000
    assert (ROOT / "docs/figures/kept.png").stat().st_size < 100_000
    assert set(gallery.TITLES) == names
