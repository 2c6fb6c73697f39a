"""What the comparison of every method says at a glance: a message, a small table, a figure."""

from __future__ import annotations

from collections import Counter

from matplotlib.figure import Figure

from lab.report.board import Board
from lab.report.draw import GREY, MARKS, NAMED, Plot, Scale, Series, compose
from lab.report.draw import OURS as COLOUR
from lab.report.markdown import percent
from lab.report.page import words
from lab.report.rivals import (
    CEILING,
    GROUPS,
    OURS,
    Timed,
    group,
    kept_rows,
    panels,
    per_layer,
    points,
    rival,
)
from tokensieve.evaluate.config import Suite

AT = 0.1  # the share by which methods are ranked
BEST = {"before the encoder": 1, "inside the encoder": 1, "before the LLM": 3, "inside the LLM": 1}


def score(board: Board, suite: Suite, name: str, keep: float) -> float | None:
    """Share right of a row, mean of the kinds."""
    return board.overall("main", name, keep, suite.kinds)


def best(board: Board, suite: Suite) -> list[str]:
    """The selector, and of each site those that read most at `AT` with fewest tokens a layer."""
    found = [OURS]
    for site, count in BEST.items():
        rows = [v.name for v in kept_rows(suite)
                if group(v) == site and v.name not in (OURS, CEILING)
                and score(board, suite, v.name, AT) is not None]  # fmt: skip
        rows.sort(key=lambda name: -(score(board, suite, name, AT) or 0))
        found += rows[:count]
    return [name for name in [*found, "random"] if name in {v.name for v in kept_rows(suite)}]


def best_rows(board: Board, suite: Suite) -> list[list[str]]:
    """Those rows, shares across."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    acts = {v.name: group(v) for v in kept_rows(suite)}
    rows = [["right answers, %", "acts", *[f"{keep:g}" for keep in keeps], "per layer"]]
    for name in dict.fromkeys(best(board, suite)):
        means = [score(board, suite, name, keep) for keep in keeps]
        held = per_layer(board, name, suite.kinds[0], 0.2)
        rows.append([
            f"`{name}`", acts[name], *["" if mean is None else percent(mean) for mean in means],
            "" if held is None else f"{100 * held:.0f}",
        ])  # fmt: skip
    return rows


def message(board: Board, suite: Suite) -> str:
    """Who leads where, at equal tokens of a layer."""
    said = []
    for keep in (keep for keep in suite.keeps if keep < 1):
        found = [rival(board, suite, kind, topic, keep) for kind, topic in panels(board, suite)]
        gaps = [one for one in found if one is not None]
        ahead = [name for name, gap in gaps if gap.low > 0]
        behind = Counter(name for name, gap in gaps if gap.high < 0)
        if ahead or behind:
            by = f" by {words([f'`{name}`' for name in behind])}" if behind else ""
            said.append(f"at {keep:g} ahead in {len(ahead)} and beaten in {behind.total()}{by}")
    if not any(score(board, suite, OURS, keep) for keep in suite.keeps):
        return "Not run yet."
    count = len(panels(board, suite))
    return (
        f"The selector against the best of all others with as few tokens in a layer, on {count} "
        f"questions of {len(suite.kinds)} kinds of pictures: "
        f"{', '.join([*said, 'level everywhere else'])}."
    )


def figure(board: Board, suite: Suite, times: Timed) -> Figure:
    """Quality of every method against tokens a layer holds and against time; a few are named."""
    named = _named(board, suite)
    styles = dict(zip(named, zip((COLOUR, *NAMED), MARKS, strict=False), strict=False))
    drawn: tuple[list[Series], list[Series]] = ([], [])
    for variant in kept_rows(suite):
        found = sorted(points(board, suite, variant, times), reverse=True)
        color, mark = styles.get(variant.name, (GREY, ""))
        for column, series in enumerate(drawn):
            xy = [(p[column], 100 * p[2]) for p in found if p[column] is not None]
            if xy:
                x, y = zip(*xy, strict=True)
                series.append(Series(x, y, variant.name if mark else "", color, mark))
    right = Scale("right answers, % of all tokens'", range(0, 101, 20), (-3, 107))
    ticks = [0.05, 0.1, 0.2, 0.5, 1.0]
    tokens = Scale("share of visual tokens in a layer", ticks[::-1], (1.1, 0.043), log=True)
    plots = [Plot("Against tokens", tokens, right, drawn[0])]
    if drawn[1]:
        longest = max(max(series.x) for series in drawn[1])
        clock = Scale(
            "time to encode, choose and prefill, of full's",
            [n / 4 for n in range(2, 8) if n / 4 <= longest],
            (longest + 0.06, 0.22),
        )
        plots.append(Plot("Against time", clock, right, drawn[1]))
    first = best(board, suite)
    at = score(board, suite, first[0], AT)
    told = "Every method: the selector and those told apart by name, the others grey."
    peers = [n for n in first[1:] if (per_layer(board, n, suite.kinds[0], AT) or 1) <= 1.05 * AT]
    if at is not None and peers:
        other = max(peers, key=lambda name: score(board, suite, name, AT) or 0)
        theirs, count = (
            score(board, suite, other, AT) or 0.0,
            sum(v.name != CEILING for v in kept_rows(suite)),
        )
        told = f"At a tenth of the tokens in a layer {other} answers most."
        if at >= theirs:
            told = (f"Of {count} methods the selector answers most at a tenth of the tokens in a "
                    f"layer: {percent(at)} %, next {other} with {percent(theirs)} %.")  # fmt: skip
    return compose(told, plots, len(plots), 3.4)


def _named(board: Board, suite: Suite) -> list[str]:
    """The selector, the first of each site, and random."""
    acts = {v.name: group(v) for v in kept_rows(suite)}
    firsts: dict[str, str] = {}
    for name in best(board, suite)[1:]:
        if name != "random":
            firsts.setdefault(acts[name], name)
    return list(dict.fromkeys([OURS, *[firsts[s] for s in GROUPS.values() if s in firsts],
                               "random"]))[:6]  # fmt: skip
