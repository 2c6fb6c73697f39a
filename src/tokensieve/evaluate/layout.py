"""Records of `tokensieve eval` as the papers print them: methods down, benchmarks across, and last
the share of all tokens' scores on average."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokensieve.evaluate.compare import ALL, Line, compared, groups_of


@dataclass(frozen=True)
class Row:
    """A method at one keep: its score by group in [0, 1], None where it was refused.

    of_full: the mean over groups of its score over that of all tokens; None where those were not
    asked, or answer nothing of a group.
    """

    method: str
    keep: float
    tokens: float
    scores: tuple[float | None, ...]
    of_full: float | None


def rows_of(files: Sequence[Path]) -> tuple[list[str], list[Row]]:
    """The groups of a suite, and a row a method and keep; all tokens first."""
    groups = [group for group in groups_of(files) if group != ALL] or [ALL]
    found = {group: {(one.method, one.keep): one for one in compared(files, group)}
             for group in groups}  # fmt: skip
    rows = []
    for method, keep in found[groups[0]]:
        lines = [found[group][method, keep] for group in groups]
        scores = tuple(one.score.mean if one.score else None for one in lines)
        full = [_full(found[group].values()) for group in groups]
        kept = sum(one.kept for one in lines) / len(lines)
        rows.append(Row(method, keep, kept, scores, _share(scores, full)))
    return groups, sorted(rows, key=lambda row: (row.method != "full", -row.keep))


def _full(lines: Iterable[Line]) -> float | None:
    for one in lines:
        if one.method == "full" and one.score:
            return one.score.mean
    return None


def _share(scores: Sequence[float | None], full: Sequence[float | None]) -> float | None:
    shares = [a / b for a, b in zip(scores, full, strict=True) if a is not None and b]
    return sum(shares) / len(shares) if len(shares) == len(scores) else None


def markdown(files: Sequence[Path]) -> str:
    """The section of a table's page; empty where the suite has one group."""
    groups, rows = rows_of(files)
    if len(groups) < 2:
        return ""
    parts = [
        "\n## As the papers print it\n\n",
        f"| method | keep | tokens | {' | '.join(groups)} | of full, % |\n",
        "| :-- | --: | --: |" + " --: |" * (len(groups) + 1) + "\n",
    ]
    for row in rows:
        scores = " | ".join(_percent(score) for score in row.scores)
        parts.append(
            f"| `{row.method}` | {row.keep:g} | {row.tokens:.0f} | {scores} | "
            f"{_percent(row.of_full)} |\n"
        )
    parts.append("\nScores in per cent; *of full*: the mean of their shares of all tokens'.\n")
    return "".join(parts)


def table(files: Sequence[Path]) -> str:
    """The same as CSV."""
    groups, rows = rows_of(files)
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(["method", "keep", "tokens", *groups, "of_full"])
    for row in rows:
        scores = ["" if one is None else f"{one:.4f}" for one in (*row.scores, row.of_full)]
        sheet.writerow([row.method, f"{row.keep:g}", f"{row.tokens:.1f}", *scores])
    return out.getvalue()


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
