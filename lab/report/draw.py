"""Figures that can be read: one message, few series by name, the rest grey.

A figure is 7 inches wide. Its smallest text is 8.5 points: 13 pixels where a README shows it 800
wide. Names stand at the lines they belong to, where there is room; `overlaps` finds text on text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox

from tokensieve.files import make_folder, written_whole

OURS = "#C8440A"
NAMED = ("#0067A8", "#00755A", "#7A2560", "#A07800", "#333333")  # told apart by the colour-blind
GREY, INK, FAINT = "#C4C4C4", "#1E1E1E", "#5A5A5A"
WIDTH, SMALL, MIDDLE, LARGE = 7.0, 8.5, 9.5, 11.5
MARGIN = 0.1  # inches
LINE = 0.19  # inches of a line of the title
PLACES, STEPS, NAMELESS = 30, 20_000, 1000.0  # of the search for where names stand
MARKS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Series:
    """One curve: x and y, and its name, colour and mark; without a name it is grey background."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    color: str = GREY
    mark: str = ""
    dashed: bool = False
    dots: bool = False  # no line between its points


@dataclass(frozen=True)
class Scale:
    """An axis: what it measures, where its ticks stand and how they read, and its ends."""

    label: str
    ticks: Sequence[float]
    ends: tuple[float, float]
    form: str = "{:g}"
    log: bool = False


@dataclass(frozen=True)
class Plot:
    """One panel: its heading, its axes and what is drawn on them."""

    heading: str
    x: Scale
    y: Scale
    series: Sequence[Series]


def compose(message: str, plots: Sequence[Plot], columns: int, height: float = 2.9) -> Figure:
    """Plots in rows of `columns`, each `height` inches tall, under one message."""
    figure, axes = panels(message, -(-len(plots) // columns), columns, height)
    for ax in axes[len(plots) :]:
        ax.remove()
    for ax, plot in zip(axes, plots, strict=False):
        frame(ax, plot.heading, plot.x, plot.y)
        curves(ax, plot.series)
    return figure


def panels(message: str, rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """An empty figure under its message, and its axes row by row; `height` of a row in inches."""
    lines = wrapped(message, LARGE, WIDTH - 2 * MARGIN)
    top = 2 * MARGIN + LINE * len(lines)
    tall = top + rows * height
    figure = Figure(figsize=(WIDTH, tall), dpi=220, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(MARGIN / WIDTH, 1 - MARGIN / tall, "\n".join(lines), fontsize=LARGE,
                fontweight="bold", va="top", color=INK, linespacing=1.15)  # fmt: skip
    left, right, below, above, gap = 0.62, 0.12, 0.52, 0.3, 0.62
    wide = (WIDTH - left - right - (columns - 1) * gap) / columns
    axes = []
    for row, column in product(range(rows), range(columns)):
        bottom = tall - top - (row + 1) * height + below
        box = ((left + column * (wide + gap)) / WIDTH, bottom / tall, wide / WIDTH,
               (height - below - above) / tall)  # fmt: skip
        axes.append(figure.add_axes(box))
    return figure, axes


def frame(ax: Axes, heading: str, x: Scale, y: Scale) -> None:
    """Heading, axes and a faint grid."""
    if x.log:
        ax.set_xscale("log")
    ax.set(xlim=x.ends, ylim=y.ends)
    for axis, scale in ((ax.xaxis, x), (ax.yaxis, y)):
        shown = [tick for tick in scale.ticks if min(scale.ends) <= tick <= max(scale.ends)]
        axis.set_major_locator(FixedLocator(shown))
        axis.set_minor_locator(NullLocator())
        axis.set_ticklabels([scale.form.format(tick) for tick in shown])
    ax.set_title(heading, loc="left", fontsize=MIDDLE, color=INK, pad=5)
    ax.set_xlabel(x.label, fontsize=SMALL, color=FAINT, labelpad=2)
    ax.set_ylabel(y.label, fontsize=SMALL, color=FAINT, labelpad=2)
    ax.tick_params(labelsize=SMALL, length=2, color=GREY, labelcolor=FAINT)
    ax.grid(color="#ECECEC", lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(GREY)


def curves(ax: Axes, drawn: Iterable[Series]) -> None:
    """Grey ones below, named ones above, each with its name where there is room, near its end."""
    drawn = list(drawn)
    for series in sorted(drawn, key=lambda one: bool(one.name)):
        known, alone = bool(series.name), len(series.x) == 1
        line = "--" if series.dashed else "-"
        ax.plot(series.x, series.y, color=series.color, lw=1.7 if known else 0.8,
                ls="" if series.dots else line, marker=series.mark or ("x" if alone else ""),
                ms=2 if series.dots else 3.6, mew=0 if series.dots else 1,
                alpha=0.6 if series.dots else 1, zorder=3 if known else 2)  # fmt: skip
    label(ax, [one for one in drawn if one.name], drawn)


def label(ax: Axes, named: Sequence[Series], drawn: Sequence[Series]) -> None:
    """Names beside the lines: none on another, and as little on any line as can be."""
    if not named:
        return
    ink = np.concatenate([_dense(ax, one) for one in drawn])
    marks = np.concatenate([ax.transData.transform(np.column_stack([one.x, one.y]))
                            for one in named if not one.dots] or [np.empty((0, 2))])  # fmt: skip
    made, places = [], []
    for series in named:
        text = ax.annotate(series.name, (0, 0), xytext=(0, 0), textcoords="offset points",
                           fontsize=SMALL, fontweight="bold", color=series.color, va="bottom",
                           zorder=5, annotation_clip=False)  # fmt: skip
        made.append(text)
        others = [_dense(ax, one) for one in named if one is not series]
        others_P2 = np.concatenate(others) if others else np.empty((0, 2))
        places.append(_places(ax, text.get_window_extent(), _dense(ax, series), others_P2, ink,
                              marks))  # fmt: skip
    chosen = _apart(places)
    for text, box in zip(made, chosen, strict=True):
        if box is None:  # no room: better no name than one on another
            text.remove()
        else:
            text.xy = tuple(ax.transData.inverted().transform((box.x0, box.y0)))


def _places(
    ax: Axes,
    size: Bbox,
    own_P2: np.ndarray,
    others_P2: np.ndarray,
    ink_P2: np.ndarray,
    marks_P2: np.ndarray,
) -> list[tuple[float, Bbox]]:
    """Boxes for a name beside its line, the best first, each with what speaks against it."""
    inside, pixel = ax.get_window_extent(), ax.figure.dpi / 72
    found = []
    for at, side in product(own_P2[:: max(1, len(own_P2) // 60)], _sides(size, pixel)):
        box = Bbox.from_bounds(at[0] + side[0], at[1] + side[1], size.width, size.height)
        if not _within(box, inside):
            continue
        wide, middle = box.padded(2 * pixel), box.get_points().mean(0)
        covered = int(_inside(ink_P2, wide).sum())
        covered += 4 * int(_inside(np.concatenate([own_P2, others_P2]), wide).sum())
        covered += 8 * int(_inside(marks_P2, wide).sum())
        away = float(np.hypot(*(middle - own_P2[-1]))) / inside.width
        astray = _least(middle, others_P2) < _least(middle, own_P2)  # reads as another's
        found.append((covered + 6 * away + 8 * astray, box))
    spread: list[tuple[float, Bbox]] = []  # the best of those that nearly coincide
    for cost, box in sorted(found, key=lambda one: one[0]):
        near = (abs(box.x0 - other.x0) + abs(box.y0 - other.y0) for _, other in spread)
        if len(spread) < PLACES and min(near, default=np.inf) > size.height / 2:
            spread.append((cost, box))
    return spread


def _apart(places: Sequence[Sequence[tuple[float, Bbox]]]) -> list[Bbox | None]:
    """One box of each list, no two of which meet, at the least cost; None where there is none."""
    best: list[Bbox | None] = [None] * len(places)
    least, steps = float("inf"), 0
    rest = [sum(one[0][0] for one in places[i:] if one) for i in range(len(places) + 1)]

    def go(taken: list[Bbox | None], cost: float) -> None:
        nonlocal best, least, steps
        steps += 1
        if cost + rest[len(taken)] >= least or steps > STEPS:
            return
        if len(taken) == len(places):
            best, least = list(taken), cost
            return
        for extra, box in places[len(taken)]:
            if not any(other is not None and _meet(box, other) for other in taken):
                go([*taken, box], cost + extra)
        go([*taken, None], cost + NAMELESS)

    go([], 0.0)
    return best


def _least(point: np.ndarray, points_P2: np.ndarray) -> float:
    """Distance to the nearest of some points."""
    return float(np.hypot(*(points_P2 - point).T).min()) if len(points_P2) else float("inf")


def _sides(size: Bbox, pixel: float) -> list[tuple[float, float]]:
    """Offsets of a label's corner from a point of its line: right, above, below, left."""
    gap = 4 * pixel
    w, h = size.width, size.height
    return [(gap, -h / 2), (-w / 2, gap), (-w / 2, -h - gap), (-w - gap, -h / 2), (gap, gap),
            (gap, -h - gap), (-w - gap, gap), (-w - gap, -h - gap)]  # fmt: skip


def _dense(ax: Axes, series: Series) -> np.ndarray:
    """(P, 2) pixels along a curve, a few between every two of its points."""
    at = ax.transData.transform(np.column_stack([series.x, series.y]))
    if series.dots or len(at) < 2:
        return np.asarray(at)
    between = [np.linspace(a, b, 24, endpoint=False) for a, b in pairwise(at)]
    return np.concatenate([*between, at[-1:]])


def _inside(points: np.ndarray, box: Bbox) -> np.ndarray:
    x, y = points.T
    return np.asarray((x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1))


def _within(box: Bbox, outer: Bbox) -> bool:
    return bool(box.x0 >= outer.x0 and box.x1 <= outer.x1 + 6
                and box.y0 >= outer.y0 and box.y1 <= outer.y1)  # fmt: skip


def _meet(one: Bbox, other: Bbox) -> bool:
    """Whether two boxes share more than a hair."""
    shared = Bbox.intersection(one, other)
    return shared is not None and shared.width > 1 and shared.height > 1


def wrapped(text: str, size: float, inches: float) -> list[str]:
    """`text` in lines of at most so many inches, bold."""
    figure = Figure(dpi=100)
    FigureCanvasAgg(figure)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        drawn = figure.text(0, 0, longer, fontsize=size, fontweight="bold")
        if drawn.get_window_extent().width <= 100 * inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is seen, with its box in pixels."""
    figure.canvas.draw()
    found: list[tuple[str, Bbox]] = []
    for one in figure.findobj(lambda a: isinstance(a, Text) and a.get_visible()):
        if isinstance(one, Text) and one.get_text().strip():
            found.append((one.get_text(), one.get_window_extent()))
    return found


def overlaps(figure: Figure) -> list[str]:
    """What cannot be read: texts that meet, and texts beyond the figure's edge."""
    found, edge = texts(figure), figure.bbox
    said = [f"'{a}' meets '{b}'" for (a, one), (b, other) in combinations(found, 2)
            if _meet(one, other)]  # fmt: skip
    for name, box in found:
        if box.x0 < edge.x0 or box.x1 > edge.x1 or box.y0 < edge.y0 or box.y1 > edge.y1:
            said.append(f"'{name}' leaves the figure")
    return said


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all; the same figure gives the same bytes."""
    make_folder(path.parent)
    told: dict[str, Any] = {"Software": None}
    with written_whole(path) as part:
        figure.savefig(part, format="png", metadata=told, pil_kwargs={"optimize": True})
