"""Who leads in a suite: the selector beside baselines and the best method without training."""

from __future__ import annotations

from itertools import product

from lab.report import markdown
from lab.report.board import Board, Place
from lab.report.page import words
from lab.report.quality import Times
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.stats import paired_difference
from tokensieve.methods.registry import method_class, method_names

OURS, AT = "selector", 0.1
CONTROLS = ("full", "none")
BASELINES = ("random", "stride", "avgpool", "downsample")
COLUMNS = (0.05, 0.1, 0.2, 0.4)  # of the table that matters
TIMED = 0.2
LABELS = {"full": "all tokens", "no-image": "no image", OURS: "**selector**, trained"}
Spots = list[tuple[str, float]]


def present(suite: Suite, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that the suite has, in the order of `names`."""
    known = {variant.name for variant in suite.variants}
    return [name for name in names if name in known]


def untrained(suite: Suite) -> list[str]:
    """Methods of the suite that need no training; not all that there are.

    One by options of its own, as the ceiling, is no peer.
    """
    known = set(method_names()) - set(CONTROLS)
    return [name for name in dict.fromkeys(variant.name for variant in suite.variants)
            if name in known and not method_class(name).trained]  # fmt: skip


def best_peer(board: Board, suite: Suite) -> str:
    """Of those the one that reads most at `AT`, over all kinds."""
    names = untrained(suite)
    return max(names, key=lambda name: board.overall("main", name, AT, suite.kinds) or 0.0)


def small_table(board: Board, suite: Suite, times: Times) -> str:
    """The rows a newcomer compares, a few shares across, mean of the kinds; and time at one."""
    keeps = [keep for keep in COLUMNS if keep in suite.keeps]
    peer = best_peer(board, suite)
    labels = {**LABELS, peer: f"`{peer}`, the best of {len(untrained(suite))} untrained here"}
    rows = [["right answers, %", *[f"{keep:.0%} of tokens" for keep in keeps],
             f"time at {TIMED:.0%}"]]  # fmt: skip
    methods = {variant.name: variant.method for variant in suite.variants}
    for name in dict.fromkeys(("full", OURS, peer, *BASELINES, "no-image")):
        if name not in methods:
            continue
        label = labels.get(name, f"`{name}`")
        whole = board.overall("main", name, 1.0, suite.kinds)
        if name in ("full", "no-image"):  # one score, whatever the share
            said = markdown.NOT_RUN if whole is None else markdown.percent(whole)
            rows.append([label, *[said] * len(keeps), "1.00" if name == "full" else ""])
            continue
        means = [board.overall("main", name, keep, suite.kinds) for keep in keeps]
        cells = [markdown.NOT_RUN if mean is None else markdown.percent(mean) for mean in means]
        time = times.get(methods[name], {}).get(TIMED)
        rows.append([label, *cells, "" if time is None else f"{time:.2f}"])
    return markdown.table(rows)


def measured(board: Board, suite: Suite, reader: str) -> str:
    """What the numbers are of; `reader` is the model, in words."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    return (
        f"Measured on {count} held-out generated pictures of each kind "
        f"({words(suite.kinds)}; split `{suite.split}`), mean of the kinds and "
        f"of seeds where there are several, with {reader}."
    )


def message(board: Board, suite: Suite) -> str:
    """Who leads where."""
    peer = best_peer(board, suite)
    full = board.overall("main", "full", 1.0, suite.kinds)
    parts = []
    for keep in COLUMNS[:3]:
        ours = board.overall("main", OURS, keep, suite.kinds)
        theirs = board.overall("main", peer, keep, suite.kinds)
        if ours is not None and theirs is not None and full:
            parts.append(f"at {keep:.0%} of the tokens {ours / full:.1%} (`{peer}` "
                         f"{theirs / full:.1%})")  # fmt: skip
    if not parts:
        return "Not run yet."
    ahead, level, behind = standing(board, suite, OURS, peer)
    said = f"Of the answers that all tokens give, the selector keeps {words(parts)}."
    where = f", on {words([f'{kind} at {keep:g}' for kind, keep in behind])}" if behind else ""
    return (f"{said} Question by question and share by share it is ahead of `{peer}` in "
            f"{len(ahead)} cases, level in {len(level)} and behind in "
            f"{len(behind)}{where}.")  # fmt: skip


def standing(board: Board, suite: Suite, ours: str, peer: str) -> tuple[Spots, Spots, Spots]:
    """(kind and topic, share) where `ours` leads `peer`, is level (95 % interval), trails."""
    ahead: Spots = []
    level: Spots = []
    behind: Spots = []
    for kind in suite.kinds:
        for topic, keep in product(board.topics(kind), [keep for keep in suite.keeps if keep < 1]):
            mine = board.hits(Place("main", ours, kind, topic, keep))
            other = board.hits(Place("main", peer, kind, topic, keep))
            if mine and other:
                gap = paired_difference(mine, other)
                where = ahead if gap.low > 0 else behind if gap.high < 0 else level
                where.append((f"{kind} ({topic})", keep))
    return ahead, level, behind
