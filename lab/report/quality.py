"""Quality against tokens and against time: of a whole suite, and of each kind in four lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from lab.report.board import MEAN, Board, Place
from lab.report.draw import GREY, MARKS, NAMED, OURS, Plot, Scale, Series, compose
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import read_all

Times = Mapping[str, Mapping[float, float]]  # by method and share kept, of the pass with all tokens
SELECTOR, BASELINES = "selector", ("random", "downsample")
ENOUGH, NEARLY = 0.99, 0.95  # of what all tokens answer
TICKS = (1.0, 0.5, 0.2, 0.1, 0.05)
RIGHT = Scale("right answers, %, mean of the kinds", range(0, 101, 20), (-3, 103))


def times_of(results: Path, model: str = "nano") -> Times:
    """Time to encode, select and prefill, of full's; records of results/prefill of a model."""
    folder = results / "prefill"
    found = read_all(folder) if folder.exists() else []
    return {
        record["config"]["method"]: {row["keep"]: row["whole"] for row in record["rows"]}
        for record in found
        if record.get("form") == "prefill" and record["config"]["model"] == model
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
    return compose(message(board, suite, peer, times), plots, len(plots), 3.3)


FOUR = {"full": ("all tokens", NAMED[4]), SELECTOR: ("selector", OURS),
        "random": ("random", NAMED[0]), "no-image": ("no image", NAMED[3])}  # fmt: skip


def four_lines(board: Board, suite: Suite, times: Times | None = None) -> Figure:
    """All tokens, selector, random and no image, a panel for each kind and topic: against tokens,
    or, given `times`, against the time of the pass as a share of all tokens'."""
    ticks = [keep for keep in TICKS if keep in {*suite.keeps, 1.0}]
    x = Scale("share of visual tokens kept", ticks, (1.08, 0.9 * min(suite.keeps)), log=True)
    if times is not None:
        longest = max([1.0, *(t for name in FOUR for t in times.get(name, {}).values())])
        x = Scale("time, of all tokens'", [n / 4 for n in range(1, 8)], (longest + 0.06, 0.1))
    y = Scale("right answers, %", range(0, 101, 25), (-3, 103))
    plots = []
    for kind, topic in board.panels(suite.kinds):
        if topic == MEAN:
            continue
        lines = [_line(board, suite, name, (kind, topic), times, x) for name in FOUR]
        heading = kind if topic in ("text", kind) else f"{kind}: {topic}"
        plots.append(Plot(heading, x, y, [line for line in lines if line]))
    return compose(_said(board, suite), plots, 3, 2.3)


def _line(
    board: Board, suite: Suite, name: str, where: tuple[str, str], times: Times | None, x: Scale
) -> Series | None:
    """One of `FOUR`: level where it has one score whatever the share, else by share or time."""
    title, color = FOUR[name]
    found = {
        keep: 100 * got.mean
        for keep in (1.0, *sorted(suite.keeps, reverse=True))
        if (got := board.estimate(Place("main", name, *where, keep))) is not None
    }
    if name in ("full", "no-image"):
        level = found.get(1.0)
        return None if level is None else Series(x.ends, (level, level), title, color, dashed=True)
    at = {keep: keep for keep in found} if times is None else times.get(name, {})
    points = [(at[keep], right) for keep, right in found.items() if keep in at]
    if len(points) < 2:
        return None
    along, up = zip(*points, strict=True)
    return Series(along, up, title, color, MARKS[list(FOUR).index(name)])


def _said(board: Board, suite: Suite) -> str:
    """On how many of the kinds and topics the selector is where all tokens are."""
    everywhere = [place for place in board.panels(suite.kinds) if place[1] != MEAN]
    for keep in sorted(keep for keep in suite.keeps if keep < 1):
        near = dict.fromkeys((SELECTOR, "random"), 0)
        for name, (kind, topic) in product(near, everywhere):
            ours = board.estimate(Place("main", name, kind, topic, keep))
            full = board.estimate(Place("main", "full", kind, topic, 1.0))
            near[name] += bool(ours and full and ours.mean >= NEARLY * full.mean)
        if near[SELECTOR] >= len(everywhere) / 2:
            return (f"With {keep:.0%} of the tokens the selector keeps {NEARLY:.0%} of the right "
                    f"answers on {near[SELECTOR]} of {len(everywhere)} kinds of questions, random "
                    f"tokens on {near['random']}.")  # fmt: skip
    return "What is kept of the answers when fewer visual tokens reach the LLM, kind by kind."


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
