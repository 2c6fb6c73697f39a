"""What downsampling gets wrong: benchmarks are easy where a smaller picture answers as well.

VTC-Bench's filter [1]: at each keep, only questions that all tokens answer and the picture made
smaller to as many tokens does not.

[1] Are We Using the Right Benchmark, arXiv 2510.07143.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokensieve.evaluate.lost import RIGHT
from tokensieve.evaluate.records import read
from tokensieve.evaluate.stats import Estimate, bootstrap_mean

FILTER, UNLIKE = "downsample", ("full", "none")


@dataclass(frozen=True)
class Hard:
    """A method at one keep over the `number` questions that are hard there, of `asked`."""

    method: str
    keep: float
    number: int
    asked: int
    score: Estimate | None


def hard_of(files: Sequence[Path]) -> Iterator[Hard]:
    """By method and keep, where all tokens and `downsample` at the same keep were asked; seeds are
    averaged a question."""
    scores: dict[tuple[str, float], list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}
    for record in map(read, files):
        if record["rows"]:
            key = (record["config"]["method"], float(record["config"]["keep"]))
            scores.setdefault(key, []).append(np.array([row["score"] for row in record["rows"]]))
    full = next((found[0] for (method, _), found in scores.items() if method == "full"), None)
    if full is None:
        return
    for (method, keep), found in scores.items():
        if method in (*UNLIKE, FILTER) or (FILTER, keep) not in scores:
            continue
        hard = (full >= RIGHT) & (scores[FILTER, keep][0] < RIGHT)
        own = np.mean(found, axis=0)[hard]
        yield Hard(method, keep, int(hard.sum()), len(full),
                   bootstrap_mean(own) if len(own) else None)  # fmt: skip


def markdown(files: Sequence[Path]) -> str:
    """The section of a table's page; empty where nothing can be told."""
    found = list(hard_of(files))
    if not found:
        return ""
    parts = [
        "\n## What downsampling gets wrong\n\n",
        "| method | keep | hard questions | of all | score, % |\n| :-- | --: | --: | --: | --: |\n",
    ]
    for one in found:
        parts.append(
            f"| `{one.method}` | {one.keep:g} | {one.number} | {one.number / one.asked:.0%} | "
            f"{_score(one.score)} |\n"
        )
    parts.append(
        "\nVTC-Bench's filter (arXiv 2510.07143): at each keep, the questions that all tokens "
        "answer and the picture made smaller to as many tokens does not.\n"
    )
    return "".join(parts)


def table(files: Sequence[Path]) -> str:
    """The same as CSV."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(["method", "keep", "hard", "asked", "score", "low", "high"])
    for one in hard_of(files):
        s = one.score
        numbers = ["", "", ""] if s is None else [f"{v:.4f}" for v in (s.mean, s.low, s.high)]
        sheet.writerow([one.method, f"{one.keep:g}", one.number, one.asked, *numbers])
    return out.getvalue()


def _score(one: Estimate | None) -> str:
    if one is None:
        return ""
    return f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
