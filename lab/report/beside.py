"""Every method beside every other, kind by kind: tables, and who leads by how much."""

from __future__ import annotations

from collections.abc import Callable

from lab.report import markdown
from lab.report.board import Board, Place
from lab.report.page import fold
from lab.report.rivals import (
    CEILING,
    GROUPS,
    OURS,
    group,
    kept_rows,
    panels,
    per_layer,
    rival,
    within,
)
from tokensieve.evaluate.config import Suite

Heading = Callable[[str, str], str]  # of a kind and a topic


def by_kind(board: Board, suite: Suite, heading: Heading = markdown.title) -> list[str]:
    """The parts of a page: a table of every method for each kind and topic, then the leads."""
    return [
        "## Kind by kind",
        "In bold the best of a column among rows whose layers hold no more tokens than the column "
        "says, the ceiling left out. A row inside the LLM says what is left behind its last cut.",
        *[
            fold(heading(kind, topic), _levels(board, kind, topic),
                 markdown.table(scores(board, suite, kind, topic)))
            for kind, topic in panels(board, suite)
        ],
        "## Ahead of the best peer",
        _lead_note(),
        fold("Every kind and share", markdown.table(leaders(board, suite))),
    ]  # fmt: skip


def _levels(board: Board, kind: str, topic: str) -> str:
    shown = []
    for name, words in (("full", "all tokens"), ("no-image", "no image")):
        found = board.estimate(Place("main", name, kind, topic, 1.0))
        value = markdown.NOT_RUN if found is None else markdown.percent(found.mean)
        shown.append(f"{words} {value}")
    return f"{', '.join(shown).capitalize()}."


def scores(board: Board, suite: Suite, kind: str, topic: str) -> list[list[str]]:
    """Variants down, keeps across; the best of each column in bold."""
    variants = sorted(kept_rows(suite), key=lambda v: list(GROUPS.values()).index(group(v)))
    keeps = [keep for keep in suite.keeps if keep < 1]
    means = {
        (v.name, keep): found.mean
        for v in variants
        for keep in keeps
        if (found := board.estimate(Place("main", v.name, kind, topic, keep))) is not None
    }
    best = {
        keep: max(
            (
                mean
                for (name, k), mean in means.items()
                if k == keep and name != CEILING and within(board, name, kind, keep)
            ),
            default=None,
        )
        for keep in keeps
    }
    rows = [["exact match, %", "acts", *[f"{keep:g}" for keep in keeps], "per layer"]]
    for variant in variants:
        cells = []
        for keep in keeps:
            mean = means.get((variant.name, keep))
            text = "" if mean is None else markdown.percent(mean)
            fair = variant.name != CEILING and within(board, variant.name, kind, keep)
            bold = fair and mean is not None and mean == best[keep]
            cells.append(f"**{text}**" if bold else text)
        if any(cells):
            layer = per_layer(board, variant.name, kind, 0.2)
            shown = "" if layer is None else f"{100 * layer:.0f}"
            rows.append([variant.name, group(variant), *cells, shown])
    return rows


def leaders(board: Board, suite: Suite) -> list[list[str]]:
    """Panels down, keeps across: the best peer at no more tokens a layer, and by how much."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [[f"{OURS} minus best peer, points", *[f"{keep:g}" for keep in keeps]]]
    for kind, topic in panels(board, suite):
        cells = []
        for keep in keeps:
            found = rival(board, suite, kind, topic, keep)
            if found is None:
                cells.append(markdown.NOT_RUN)
                continue
            name, gap = found
            ends = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
            cells.append(f"{name} {100 * gap.mean:+.1f} ({ends})")
        rows.append([f"{kind} ({topic})", *cells])
    return rows


def _lead_note() -> str:
    return (
        f"Points by which `{OURS}` leads the best other method that leaves no more tokens to a "
        "layer of the LLM than the share says (so a late cut does not compete with an early one), "
        "over the same pictures, with 95 % bootstrap ends. The best of many is picked after the "
        "fact, which favours the peer."
    )
