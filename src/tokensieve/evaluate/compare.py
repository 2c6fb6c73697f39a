"""Records of `tokensieve eval` as one comparison: Markdown and CSV.

Intervals: 95 %, bootstrap over questions, seeds averaged a question; differences in pairs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokensieve.errors import InputError
from tokensieve.evaluate.records import Record, read
from tokensieve.evaluate.stats import Estimate, bootstrap_mean, paired_difference, sign_flips

ALL = "all"  # the group of every question


@dataclass(frozen=True)
class Line:
    """One method at one keep, over its seeds.

    score, to_full, to_random: in [0, 1]; the differences, in pairs, are None where the other was
    not asked, or is itself. p: of the difference to random at the same keep (`sign_flips`).
    kept: visual tokens a question; refused: why there is nothing else.
    """

    method: str
    keep: float
    seeds: int
    score: Estimate | None
    to_full: Estimate | None
    kept: float
    select_ms: float
    refused: str = ""
    to_random: Estimate | None = None
    p: float | None = None


def compared(files: Sequence[Path], group: str = ALL) -> list[Line]:
    """The lines of one group, in the order of the files. Raises `InputError` for no record."""
    runs: dict[tuple[str, float], list[Record]] = {}
    for record in map(read, files):
        config = record["config"]
        runs.setdefault((config["method"], float(config["keep"])), []).append(record)
    if not runs:
        raise InputError("Expected records to compare. Got none. Run tokensieve eval first.")
    scores = {key: [_scores(one, group) for one in found] for key, found in runs.items()}
    full = [s for (method, _), found in scores.items() if method == "full" for s in found if len(s)]
    lines = []
    for (method, keep), found in runs.items():
        seeds = [one for one in scores[method, keep] if len(one)]
        if not seeds:
            lines.append(Line(method, keep, 0, None, None, 0.0, 0.0, found[0]["refused"]))
            continue
        rows = [row for one in found for row in one["rows"] if group in (ALL, row["group"])]
        drawn = [one for one in scores.get(("random", keep), []) if len(one)]
        beside = bool(drawn) and method not in ("random", "full", "none")
        lines.append(Line(
            method, keep, len(seeds), bootstrap_mean(np.mean(seeds, axis=0)),
            paired_difference(seeds, full) if full and method != "full" else None,
            float(np.mean([row["kept"] for row in rows])),
            float(np.mean([row["ms"]["select"] for row in rows])),
            to_random=paired_difference(seeds, drawn) if beside else None,
            p=sign_flips(seeds, drawn) if beside else None,
        ))  # fmt: skip
    return lines


def groups_of(files: Sequence[Path]) -> list[str]:
    """`ALL`, and the suite's groups where there are several."""
    found = dict.fromkeys(row["group"] for file in files for row in read(file)["rows"])
    return [ALL, *found] if len(found) > 1 else [ALL]


def markdown(files: Sequence[Path]) -> str:
    """A table a group: what is right in per cent, with its interval and beside all tokens."""
    first = read(files[0])["config"]
    parts = [f"# {first['suite']}: {first['model']}\n"]
    for group in groups_of(files):
        lines = compared(files, group)
        whole = next((one.score for one in lines if one.method == "full" and one.score), None)
        parts.append(f"\n## {group}\n\n{message(lines)}\n\n")
        parts.append("| method | keep | tokens | score, % | of full, % | to full, points | "
                     "to random, points | p |\n"
                     "| :-- | --: | --: | --: | --: | --: | --: | --: |\n")  # fmt: skip
        for one in lines:
            parts.append(_row(one, whole))
    parts.append("\nIntervals: 95 %, bootstrap over questions, seeds averaged a question; "
                 "differences over the same questions; *p*: of the difference to random at the "
                 "same keep, by a paired permutation test.\n")  # fmt: skip
    return "".join(parts)


def table(files: Sequence[Path]) -> str:
    """The same as CSV, one row a group, method and keep."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(["group", "method", "keep", "seeds", "tokens", "score", "low", "high",
                    "to_full", "to_full_low", "to_full_high", "to_random", "to_random_low",
                    "to_random_high", "p", "select_ms", "refused"])  # fmt: skip
    for group in groups_of(files):
        for one in compared(files, group):
            p = "" if one.p is None else f"{one.p:.4f}"
            numbers = [*_three(one.score), *_three(one.to_full), *_three(one.to_random), p]
            sheet.writerow([group, one.method, f"{one.keep:g}", one.seeds, f"{one.kept:.1f}",
                            *numbers, f"{one.select_ms:.2f}", one.refused])  # fmt: skip
    return out.getvalue()


def message(lines: Sequence[Line]) -> str:
    """What a reader should take from it, in a sentence."""
    full = next((one for one in lines if one.method == "full" and one.score), None)
    tried = [one for one in lines if one.score and one.method not in ("full", "none")]
    if not tried:
        return "Nothing was compared."
    fewest = min(one.keep for one in tried)
    best = max((one for one in tried if one.keep == fewest), key=_mean)
    whole = f" against {100 * full.score.mean:.1f} % with all tokens" if full and full.score else ""
    return f"At keep {fewest:g}, {best.method} answers best: {100 * _mean(best):.1f} %{whole}."


def _mean(line: Line) -> float:
    return line.score.mean if line.score else 0.0


def _row(one: Line, whole: Estimate | None) -> str:
    if one.score is None:
        return f"| `{one.method}` | {one.keep:g} | | refused: {one.refused} | | | | |\n"
    share = f"{100 * one.score.mean / whole.mean:.1f}" if whole and whole.mean else ""
    score = f"{100 * one.score.mean:.1f} [{100 * one.score.low:.1f}, {100 * one.score.high:.1f}]"
    points = " | ".join(
        f"{100 * to.mean:+.1f} [{100 * to.low:+.1f}, {100 * to.high:+.1f}]" if to else ""
        for to in (one.to_full, one.to_random)
    )
    p = "" if one.p is None else f"{one.p:.3f}"
    return (
        f"| `{one.method}` | {one.keep:g} | {one.kept:.0f} | {score} | {share} | {points} | {p} |\n"
    )


def _scores(record: Record, group: str) -> NDArray[np.float64]:
    return np.array([row["score"] for row in record["rows"] if group in (ALL, row["group"])])


def _three(one: Estimate | None) -> list[str]:
    return ["", "", ""] if one is None else [f"{v:.4f}" for v in (one.mean, one.low, one.high)]
