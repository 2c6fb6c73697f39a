"""The picture on top of the README's table: quality against tokens, and against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lab.report.board import Board
from lab.report.draw import GREY, MARKS, NAMED, OURS, Plot, Scale, Series, compose
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import read_all

Times = Mapping[str, Mapping[float, float]]  # by method and share kept, of the pass with all tokens
SELECTOR, BASELINES = "selector", ("random", "downsample")
ENOUGH = 0.99  # of what all tokens answer
TICKS = (1.0, 0.5, 0.2, 0.1, 0.05)
RIGHT = Scale("right answers, %, mean of the kinds", range(0, 101, 20), (-3, 103))


def times_of(results: Path) -> Times:
    """Time to encode, select and prefill, of full's; records of results/prefill."""
    folder = results / "prefill"
    found = read_all(folder) if folder.exists() else []
    return {
        record["config"]["method"]: {row["keep"]: row["whole"] for row in record["rows"]}
        for record in found
        if record.get("form") == "prefill"
    }


def figure(board: Board, suite: Suite, names: Sequence[str], peer: str, times: Times) -> Figure:
    """Curves of `names`, of which the selector, its best peer and two baselines are named."""
    known = dict(zip((SELECTOR, peer, *BASELINES), (OURS, *NAMED), strict=False))
    methods = {variant.name: variant.method for variant in suite.variants}
    by_tokens, by_time = [], []
    for name in names:
        style = (name if name in known else "", known.get(name, GREY), _mark(name, known))
        points = [
            (keep, 100 * mean)
            for keep in sorted(suite.keeps, reverse=True)
            if (mean := board.overall("main", name, keep, suite.kinds)) is not None
        ]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            by_tokens.append(Series(x, y, *style))
        measured = times.get(methods[name], {}) if name == methods[name] else {}
        timed = [(measured[keep], mean) for keep, mean in points if keep in measured]
        if len(timed) > 1:
            x, y = zip(*timed, strict=True)
            by_time.append(Series(x, y, *style))
    ticks = [keep for keep in TICKS if keep in suite.keeps]
    tokens = Scale("share of visual tokens kept", ticks, (1.08, 0.9 * min(suite.keeps)), log=True)
    plots = [Plot("Against visual tokens", tokens, RIGHT, by_tokens)]
    if by_time:
        longest = max(max(series.x) for series in by_time)
        clock = Scale("time to encode, choose and prefill, of all tokens'",
                      [n / 4 for n in range(2, 8) if n / 4 <= longest + 0.1],
                      (longest + 0.06, 0.22))  # fmt: skip
        plots.append(Plot("Against time, on one thread", clock, RIGHT, by_time))
    return compose(message(board, suite, peer, times), plots, 2, 3.3)


def _mark(name: str, known: Mapping[str, str]) -> str:
    return MARKS[list(known).index(name)] if name in known else ""


def message(board: Board, suite: Suite, peer: str, times: Times) -> str:
    """What the figure shows, from its numbers."""
    full = board.overall("main", "full", 1.0, suite.kinds)
    for keep in sorted(keep for keep in suite.keeps if keep < 1):
        mean = board.overall("main", SELECTOR, keep, suite.kinds)
        if not full or mean is None or mean < ENOUGH * full:
            continue
        said = f"With {keep:.0%} of the tokens the selector keeps {mean / full:.1%} of the answers"
        whole = times.get(SELECTOR, {}).get(keep)
        if whole is None:
            return f"{said}."
        small = "but on so small a model choosing takes longer than it saves"
        return f"{said}, {small if whole > 1 else f'in {whole:.0%} of the time'}."
    return "What is kept of the answers when fewer visual tokens reach the LLM."
