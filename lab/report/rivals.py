"""Rows of the comparison of every method: who competes, with how many tokens, and who leads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab.oracle import TextOracle
from lab.report.board import MEAN, Board, Place
from tokensieve.evaluate.config import Suite, Variant
from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import Estimate, paired_difference
from tokensieve.methods.registry import method_class
from tokensieve.types import Site

OURS = "selector"
Timed = Mapping[str, Record]  # by method
RENUMBERED = "-renumbered"
ROUNDING = 1.05  # a grid or a threshold does not hit every count
CEILING = "oracle-text"  # told where the text is: no method to be compared with
GROUPS = {  # by site, in the order of the page
    Site.PIXELS: "before the encoder",
    Site.PATCHES: "before the encoder",
    Site.ENCODER: "inside the encoder",
    Site.FEATURES: "before the LLM",
    Site.EMBEDS: "before the LLM",
    Site.LLM: "inside the LLM",
}


def kept_rows(suite: Suite) -> list[Variant]:
    """Rows of positions "keep", of methods that go by a budget."""
    return [v for v in suite.variants if not v.name.endswith(RENUMBERED) and _budgeted(v)]


def _budgeted(variant: Variant) -> bool:
    return variant.method not in ("full", "none")


def panels(board: Board, suite: Suite) -> list[tuple[str, str]]:
    """(kind, topic) of every table. No means over topics: not every picture is asked of each."""
    return [(kind, topic) for kind, topic in board.panels(suite.kinds) if topic != MEAN]


def group(variant: Variant) -> str:
    """Where the row's method acts."""
    site = TextOracle.site if variant.method == CEILING else method_class(variant.method).site
    return GROUPS[site]


def per_layer(board: Board, variant: str, kind: str, keep: float) -> float | None:
    """Share of the visual tokens that a layer holds on average; None where not run."""
    for topic in board.topics(kind):
        cell = board.cell(Place("main", variant, kind, topic, keep))
        if cell is not None:
            return cell.average("layer_tokens") / cell.average("visual_tokens")
    return None


def within(board: Board, variant: str, kind: str, keep: float) -> bool:
    """Whether a layer of the LLM holds no more tokens, on average, than `keep` says (rounding
    apart): a late cut that reads all tokens first is no rival of an early one."""
    return (per_layer(board, variant, kind, keep) or 0.0) <= ROUNDING * keep


def rival(
    board: Board, suite: Suite, kind: str, topic: str, keep: float
) -> tuple[str, Estimate] | None:
    """The best peer that holds no more tokens a layer, and by how much the selector leads it.

    None where the selector or all others were not run.
    """
    mine = board.hits(Place("main", OURS, kind, topic, keep))
    gaps = {
        v.name: paired_difference(mine, hits)
        for v in kept_rows(suite)
        if mine
        and v.name not in (OURS, CEILING)
        and within(board, v.name, kind, keep)
        and (hits := board.hits(Place("main", v.name, kind, topic, keep)))
    }
    name = min(gaps, key=lambda name: gaps[name].mean, default=None)
    return None if name is None else (name, gaps[name])


def times_of(folder: Path, model: str = "nano") -> dict[str, Record]:
    """Timed of `model` by method, where any were measured."""
    found = read_all(folder) if folder.exists() else []
    return {
        r["config"]["method"]: r
        for r in found
        if r.get("form") == "prefill" and r["config"]["model"] == model
    }


def points(
    board: Board, suite: Suite, variant: Variant, times: Timed
) -> Iterator[tuple[float, float | None, float]]:
    """(tokens a layer holds, time of the whole pass, exact match), shares of full's, by keep; the
    mean over all panels."""
    by_keep = (
        {r["keep"]: r for r in times[variant.method]["rows"]} if variant.method in times else {}
    )
    everywhere = panels(board, suite)
    for keep in (keep for keep in suite.keeps if keep < 1):
        shares, layers = [], []
        for kind, topic in everywhere:
            ours = board.estimate(Place("main", variant.name, kind, topic, keep))
            full = board.estimate(Place("main", "full", kind, topic, 1.0))
            layer = per_layer(board, variant.name, kind, keep)
            if ours is not None and full is not None and full.mean and layer is not None:
                shares.append(ours.mean / full.mean)
                layers.append(layer)
        if len(shares) == len(everywhere):
            time = by_keep[keep]["whole"] if keep in by_keep else None
            yield _mean(layers), time, _mean(shares)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
