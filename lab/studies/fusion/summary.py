"""Selection and fusion at a glance: a message, a small table, a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from lab.report.board import Board
from lab.report.draw import GREY, MARKS, NAMED, OURS, Plot, Scale, Series, compose
from lab.report.markdown import NOT_RUN, percent
from lab.studies.fusion.rows import GRID, PANELS, Row, hits_of, place
from tokensieve.evaluate.stats import seed_mean

COLUMNS = {  # of the small table and the figure: means of columns of the large ones
    "text": ("pages", "cluttered", "mixed"),
    "where": ("where",),
    "scenes": ("scenes",),
    "photo panel": ("panel",),
}
PICTURE = 256  # tokens of a picture
ALL = Row("mlp")
SELECT = {n: Row("mlp", "selector-embeds", n / PICTURE) for n in (128, 64, 32, 16)}
TAUGHT = {n: Row("selected", "selector", n / PICTURE) for n in (128, 64, 32, 16)}
BOTH = {32: Row("stf", "fused-selector", 0.5), 16: Row("stf", "fused-selector", 0.25)}
FUSE = (Row("stf"), Row("release-k2-e1"), Row("release-k2-e1-long"), Row("concat"))
LEAD = [
    ("all tokens", ALL),
    ("select, nothing trained for it", SELECT[64]),
    ("select, LLM trained with it", TAUGHT[64]),
    ("fuse 2 x 2", Row("release-k2-e1")),
    ("fuse 2 x 2, twice the steps", Row("release-k2-e1-long")),
    ("select, nothing trained for it", SELECT[16]),
    ("fuse 2 x 2, then select", BOTH[16]),
]
CURVES: dict[str, list[Row]] = {  # of the figure: rows of ever fewer tokens; without a name grey
    "select": [ALL, *SELECT.values()],
    "select in training": list(TAUGHT.values()),
    "fuse, then select": [Row("stf"), *BOTH.values()],
    "random": [ALL, *[Row("mlp", "random", n / PICTURE) for n in (128, 64, 32, 16)]],
    "divprune": [ALL, *[Row("mlp", "divprune", n / PICTURE) for n in (128, 64, 32, 16)]],
    "stf, then divprune": [Row("stf"), Row("stf", "divprune", 0.5), Row("stf", "divprune", 0.25)],
    "concat": [Row("concat")],
    "avgpool": [Row("avgpool")],
    **{name: [Row(name)] for name in GRID},
}
NAMES = ("select", "select in training", "fuse, then select", "random")


def mean_of(board: Board, row: Row, column: str) -> float | None:
    """Share right of a row in a column of `COLUMNS`; None where not run."""
    found = [hits_of(board, row, panel) for panel in COLUMNS[column]]
    if not all(found):
        return None
    return sum(float(seed_mean(hits).mean()) for hits in found) / len(found)


def tokens_of(board: Board, row: Row) -> float | None:
    """Visual tokens of a picture in the LLM, as recorded; None where not run."""
    cell = board.cell(place(row, *PANELS["pages"][0]))
    return None if cell is None else cell.average("kept_tokens")


def lead(board: Board) -> list[list[str]]:
    """A few ways of having fewer tokens, the four kinds of questions across."""
    out = [["right answers, %", "row", "tokens", *COLUMNS]]
    for label, row in LEAD:
        tokens = tokens_of(board, row)
        means = [mean_of(board, row, column) for column in COLUMNS]
        cells = [NOT_RUN if mean is None else percent(mean) for mean in means]
        out.append([label, f"`{row.label}`", "" if tokens is None else f"{tokens:.0f}", *cells])
    return out


def message(board: Board) -> str:
    """What leads where: at a quarter of the tokens on text and on photo panels, and with fewest."""
    text, panel = (
        [mean_of(board, SELECT[64], column), _best(board, FUSE, column)]
        for column in ("text", "photo panel")
    )
    few = [mean_of(board, rows[16], "text") for rows in (SELECT, BOTH)]
    pairs = [_pair(*pair) for pair in (text, panel, few)]
    if None in pairs:
        return "Not all of it was run: see which rows are missing."
    return (f"At a quarter of the tokens, plugged-in selection and the best fusing arm read "
            f"{pairs[0]} % of the text and {pairs[1]} % of photo panels; at a sixteenth, selection "
            f"alone and selection of fused tokens read {pairs[2]} % of the text.")  # fmt: skip


def _best(board: Board, rows: Sequence[Row], column: str) -> float | None:
    return max((m for row in rows if (m := mean_of(board, row, column)) is not None), default=None)


def _pair(one: float | None, other: float | None) -> str | None:
    return None if one is None or other is None else f"{percent(one)} and {percent(other)}"


def figure(board: Board) -> Figure:
    """Text and photo panels against visual tokens; a few ways by name."""
    styles = dict(zip(NAMES, zip((OURS, *NAMED), MARKS, strict=False), strict=False))
    x = Scale("visual tokens of a picture", (256, 128, 64, 32, 16), (290, 14), log=True)
    y = Scale("exact match, %", range(0, 101, 20), (-4, 112))
    plots = []
    for heading, column in (("Text of pages", "text"), ("Photo panels", "photo panel")):
        drawn = []
        for name, rows in CURVES.items():
            found = [
                (tokens, 100 * mean)
                for row in rows
                if (mean := mean_of(board, row, column)) is not None
                and (tokens := tokens_of(board, row)) is not None
            ]
            if found:
                color, mark = styles.get(name, (GREY, ""))
                xs, ys = zip(*found, strict=True)
                drawn.append(Series(xs, ys, name if mark else "", color, mark))
        plots.append(Plot(heading, x, y, drawn))
    return compose(_told(board), plots, 2, 3.3)


def _told(board: Board) -> str:
    text = mean_of(board, SELECT[64], "text"), _best(board, FUSE, "text")
    panel = mean_of(board, SELECT[64], "photo panel"), _best(board, FUSE, "photo panel")
    found = [*text, *panel]
    if None in found:
        return "Exact match with fewer visual tokens: selected, fused, or both."
    a, b = (["selecting", "fusing"][int((pair[0] or 0) < (pair[1] or 0))] for pair in (text, panel))
    if a == b:
        return f"At a quarter of the tokens {a} reads most."
    return f"At a quarter of the tokens {a} reads text best and {b} photo panels."
