"""Figures can be read: no text on another, no colour twice, and the check of it bites.

The figures of the studies are held to it by the tests of each study.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from lab.report import draw
from lab.report.draw import GREY, MARKS, NAMED, OURS, Plot, Scale, Series, compose, overlaps, save

LEVEL = Scale("quality, %", (0, 50, 100), (0, 105))
TOKENS = Scale("tokens", (0, 1), (0, 1))
NAMES = ("selector", "divprune", "random", "downsample")
# four curves that end at one point: names at the ends would stand on each other
CLOSE = [
    Series((0, 1), (90 - 20 * i, 60), name, color, mark)
    for i, (name, color, mark) in enumerate(zip(NAMES, (OURS, *NAMED), MARKS, strict=False))
]


def test_names_that_crowd_are_pushed_apart() -> None:
    figure = compose("Four curves meet.", [Plot("Close", TOKENS, LEVEL, CLOSE)], 1)
    assert overlaps(figure) == []
    assert {text for text, _ in draw.texts(figure)} >= set(NAMES)


def test_the_check_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names put at the ends of their lines, come what may, are found out."""

    def at_the_end(ax, named, drawn):
        for series in named:
            ax.annotate(series.name, (series.x[-1], series.y[-1]))

    monkeypatch.setattr(draw, "label", at_the_end)
    figure = compose("Four curves meet.", [Plot("Close", TOKENS, LEVEL, CLOSE)], 1)
    said = overlaps(figure)
    assert "'selector' meets 'divprune'" in said
    assert any(line.endswith("leaves the figure") for line in said)


def test_a_name_without_room_is_left_out_rather_than_put_on_another() -> None:
    low = Scale("quality, %", (0,), (0, 1))
    crowd = [Series((0, 1), (0.5, 0.5), f"a rather long name {i}", color)
             for i, color in enumerate((OURS, *NAMED))]  # fmt: skip
    figure = compose("Too many.", [Plot("Crowd", TOKENS, low, crowd)], 3, height=1.2)
    assert overlaps(figure) == []


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(compose("One.", [Plot("Close", TOKENS, LEVEL, CLOSE)], 1), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# sRGB as seen without red or without green cones (Machado et al. 2009, severity 1)
WITHOUT_RED = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
               (-0.003882, -0.048116, 1.051998))  # fmt: skip
WITHOUT_GREEN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                 (-0.011820, 0.042940, 0.968881))  # fmt: skip


@pytest.mark.parametrize("eye", [WITHOUT_RED, WITHOUT_GREEN], ids=["no red", "no green"])
def test_colours_are_told_apart_by_the_colour_blind(eye) -> None:
    seen = {color: _seen(color, eye) for color in (OURS, *NAMED)}
    for one, other in combinations(seen, 2):
        gap = sum((a - b) ** 2 for a, b in zip(seen[one], seen[other], strict=True)) ** 0.5
        assert gap > 30, (one, other)  # of 255
    assert len({OURS, *NAMED, GREY}) == 2 + len(NAMED)


def _seen(color: str, eye) -> list[float]:
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return [sum(w * c for w, c in zip(row, rgb, strict=True)) for row in eye]
