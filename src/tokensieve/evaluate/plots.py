"""Records of `tokensieve eval` as pictures: score against tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokensieve.data.extras import need
from tokensieve.evaluate.compare import ALL, Line, compared, groups_of, message
from tokensieve.evaluate.records import read
from tokensieve.files import written_whole

SIMPLE = ("random", "stride", "avgpool", "downsample")  # grey
BESIDE = ("stride", "avgpool", "downsample")  # not among the four lines of the papers' figures
WIDE, TALL = 3.4, 2.6  # inches of a group's own plot


def curves(files: Sequence[Path], out: Path) -> None:
    """All questions: every method a line, all tokens and no image level.

    Raises `MissingPackageError` without matplotlib, which the extra `plots` brings.
    """
    figure = _figure((7, 4.2))
    axes = figure.subplots()
    lines = _answered(compared(files))
    _draw(axes, lines)
    first = read(files[0])["config"]
    axes.set(xlabel="visual tokens the LLM reads", ylabel="score, %")
    axes.set_title(_plain(f"{first['suite']}, {first['model']}: {message(lines)}"), loc="left",
                   fontsize=9, wrap=True)  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with written_whole(out) as part:
        figure.savefig(part, dpi=150, format="png")


def by_group(files: Sequence[Path], out: Path) -> bool:
    """A plot a group of questions (a benchmark, or a kind) with the four lines of the papers'
    figures: all tokens, methods, random, no image. Whether there are several groups to draw.

    Raises `MissingPackageError` as `curves`.
    """
    groups = [group for group in groups_of(files) if group != ALL]
    if len(groups) < 2:
        return False
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = _figure((WIDE * columns, TALL * rows + 0.5))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, group in zip(grid.flat, groups, strict=False):
        lines = [one for one in compared(files, group) if one.method not in BESIDE]
        _draw(axes, _answered(lines))
        axes.set_title(_plain(group), fontsize=9, loc="left")
    for axes in grid.flat[len(groups) :]:
        axes.axis("off")
    figure.supxlabel("visual tokens the LLM reads", fontsize=9)
    figure.supylabel("score, %", fontsize=9)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(5, len(names)),
                  frameon=False, fontsize=8)  # fmt: skip
    with written_whole(out) as part:
        figure.savefig(part, dpi=150, format="png")
    return True


def _figure(size: tuple[float, float]) -> Any:
    return need("matplotlib.figure", "plots", "for a picture").Figure(
        figsize=size, layout="constrained"
    )


def _answered(lines: Sequence[Line]) -> list[Line]:
    return [one for one in lines if one.score is not None]


def _draw(axes: Any, lines: Sequence[Line]) -> None:
    """Every method a line with its intervals; what keeps all or nothing a level."""
    marks = iter("osD^vP" * (1 + len(lines)))
    for name in dict.fromkeys(one.method for one in lines):
        own = sorted((one for one in lines if one.method == name), key=lambda one: one.kept)
        points = [one.score for one in own if one.score]
        y = np.array([[100 * p.mean, 100 * (p.mean - p.low), 100 * (p.high - p.mean)]
                      for p in points]).clip(0).T  # fmt: skip
        if name in ("full", "none"):
            axes.axhline(y[0, 0], color="#333333", linestyle=":" if name == "none" else "--",
                         label="all tokens" if name == "full" else "no image")  # fmt: skip
            continue
        plain = name in SIMPLE
        axes.errorbar([one.kept for one in own], y[0], yerr=y[1:], marker=next(marks), label=name,
                      color="#9A9A9A" if plain else None, capsize=2, elinewidth=0.8,
                      linewidth=1 if plain else 2, markersize=4)  # fmt: skip
    axes.set(ylim=(0, 102))
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """Text whose dollars are dollars, not mathematics."""
    return text.replace("$", r"\$")
