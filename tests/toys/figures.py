"""What a figure of the docs is held to, and the records a study draws it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.report import draw
from lab.report.board import Board
from tokensieve.evaluate.config import Suite, load_suite

ROOT = Path(__file__).parents[2]


def board_of(suite_file: str) -> tuple[Board, Suite]:
    """The shipped records of a suite."""
    suite = load_suite(ROOT / suite_file)
    return Board.of(ROOT / "results" / suite.suite), suite


def check_readable(figure: Any) -> None:
    """No text on another, few colours, a title that is a sentence."""
    assert draw.overlaps(figure) == []
    colours = [
        {line.get_color() for line in ax.lines if line.get_color() != draw.GREY}
        for ax in figure.axes
    ]
    assert all(0 < len(used) <= 6 for used in colours), "few by name"
    assert any(text.endswith(".") for text, _ in draw.texts(figure)), "its title is no sentence"
