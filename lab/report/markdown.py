"""Boards as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from lab.report.board import MEAN, Board, Place
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.stats import Scores, paired_difference, seed_mean

NOT_RUN = "not run"
_TITLES = {
    ("plain", "text"): "Plain pages: the value of a key",
    ("cluttered", "text"): "Cluttered pages: the value of a key",
    ("plain", "place"): "Plain pages: where a key stands",
    ("plain", MEAN): "Plain pages: mean of both questions",
    ("cluttered", "place"): "Cluttered pages: where a key stands",
    ("cluttered", MEAN): "Cluttered pages: mean of both questions",
    ("scene", "scene"): "Scenes: colour, shape, count, where",
    ("mixed", "text"): "Mixed pictures: the value of a key on the page",
    ("mixed", "place"): "Mixed pictures: where a key stands",
    ("mixed", "panel"): "Mixed pictures: colour, shape, count, where in the photo panel",
    ("mixed", MEAN): "Mixed pictures: mean of the questions",
}


def title(kind: str, topic: str) -> str:
    """A table's or panel's heading."""
    return _TITLES.get((kind, topic), f"{kind}: {topic}")


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head, the first column is left-aligned."""
    head, *body = rows
    rule = [":--", *["--:" for _ in head[1:]]]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def percent(share: float) -> str:
    """A share as per cent with one decimal."""
    return f"{100 * share:.1f}"


def scores(
    board: Board,
    suite: Suite,
    model: str,
    kind: str,
    topic: str,
    *,
    variants: Sequence[str],
    intervals: bool,
) -> str:
    """Exact match in per cent, variants down, keeps across; `intervals` adds the 95 % ends."""
    own = (one.keeps or () for one in suite.variants if one.name in variants)
    keeps = [*suite.keeps, *sorted({keep for some in own for keep in some} - {*suite.keeps})]
    rows = [["exact match, %", "pictures", *[f"{keep:g}" for keep in keeps]]]
    for name in variants:
        cells, seen = [], set()
        for keep in keeps:
            place = Place(model, name, kind, topic, keep)
            found = board.estimate(place)
            if found is None:
                cells.append("")
                continue
            seen.add(min(map(len, board.hits(place))))
            if intervals:
                ends = f"{percent(found.low)}–{percent(found.high)}"
                cells.append(f"{percent(found.mean)} ({ends})")
            else:
                cells.append(percent(found.mean))
        if not any(cells):
            cells = [NOT_RUN] + [""] * (len(keeps) - 1)
        rows.append([name, " or ".join(map(str, sorted(seen))), *cells])
    return table(rows)


def comparison(
    board: Board,
    suite: Suite,
    model: str,
    kind: str,
    topic: str,
    *,
    ours: str,
    peers: Sequence[str],
) -> str:
    """Points by which `ours` leads each peer over the same pictures, with 95 % ends."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [[f"{ours} minus, points", *[f"{keep:g}" for keep in keeps]]]
    for peer in peers:
        cells = []
        for keep in keeps:
            mine = board.hits(Place(model, ours, kind, topic, keep))
            other = board.hits(Place(model, peer, kind, topic, keep))
            if not mine or not other:
                cells.append(NOT_RUN)
                continue
            gap = paired_difference(mine, other)
            ends = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
            cells.append(f"{100 * gap.mean:+.1f} ({ends})")
        rows.append([peer, *cells])
    return table(rows)


def of_full(board: Board, suite: Suite, model: str, *, variants: Sequence[str]) -> str:
    """Exact match as a share of full's, in per cent: variants and panels down, keeps across."""
    rows = [["% of full", *[f"{keep:g}" for keep in suite.keeps]]]
    for kind, topic in board.panels(suite.kinds):
        full = board.hits(Place(model, "full", kind, topic, 1.0))
        for name in variants:
            cells = []
            for keep in suite.keeps:
                found = board.hits(Place(model, name, kind, topic, keep))
                share = share_of(found, full) if found and full else None
                cells.append("" if share is None else percent(share))
            rows.append([f"{kind} ({topic}), {name}", *cells])
    return table(rows)


def share_of(ours: Sequence[Scores], full: Sequence[Scores]) -> float | None:
    """Our mean over full's, over the pictures both saw; None where full had nothing right."""
    a_N, b_N = seed_mean(ours), seed_mean(full)
    both = min(len(a_N), len(b_N))
    base = float(b_N[:both].mean())
    return float(a_N[:both].mean()) / base if base > 0 else None


def as_csv(board: Board, suite: Suite) -> str:
    """Every seed of every row as CSV, for other tools."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = ["n", "right", "exact_match", "low", "high", "visual_tokens", "kept_tokens"]
    keys += ["llm_prefill_flops", "select_ms"]
    writer.writerow(["model", "variant", "seed", "kind", "topic", "keep", *keys])
    for record in board.records:
        config = record["config"]
        for row in record["rows"]:
            where = [config["model"], config["variant"], config["seed"], config["kind"]]
            writer.writerow([*where, row["topic"], row["keep"], *[row[k] for k in keys]])
    return out.getvalue()


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and in brackets the least and the most where seeds differ."""
    if not values:
        return ""
    mean, low, high = statistics.fmean(values), min(values), max(values)
    if format(low, form) == format(high, form):
        return format(mean, form)
    return f"{mean:{form}} ({low:{form}}–{high:{form}})"
