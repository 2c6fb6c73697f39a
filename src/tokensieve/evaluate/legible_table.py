"""Records of `legible` as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokensieve.errors import InputError
from tokensieve.evaluate.legible import SMALLER, WHOLE
from tokensieve.evaluate.records import read
from tokensieve.evaluate.stats import Estimate, bootstrap_mean

SHARES = {"words": "words whole", "area": "area", "read": "words tesseract reads"}


@dataclass(frozen=True)
class Line:
    """One method at one keep: means over documents, seeds averaged a document.

    found: by name of `SHARES`, where there is one. tokens: kept a document.
    """

    method: str
    keep: float
    found: dict[str, Estimate]
    tokens: float | None
    refused: str = ""


def lines_of(files: Sequence[Path]) -> list[Line]:
    """In the order of the records' cells. Raises `InputError` for no record."""
    by: dict[tuple[str, float], list[list[dict[str, Any]]]] = {}
    for record in map(read, files):
        own: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for row in record["rows"]:
            own.setdefault((row["method"], float(row["keep"])), []).append(row)
        for key, rows in own.items():
            by.setdefault(key, []).append(rows)
    if not by:
        raise InputError("Expected records of receipts. Got none. Run tokensieve eval first.")
    return [_line(*key, documents) for key, documents in by.items()]


def _line(method: str, keep: float, documents: list[list[dict[str, Any]]]) -> Line:
    found = {}
    for name in SHARES:
        values = [_mean(rows, name) for rows in documents]
        real = [value for value in values if value is not None]
        if real:
            found[name] = bootstrap_mean(np.array(real))
    counts = [value for rows in documents if (value := _mean(rows, "kept")) is not None]
    refused = next((row["refused"] for rows in documents for row in rows if row["refused"]), "")
    return Line(method, keep, found, float(np.mean(counts)) if counts else None, refused)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """Over the seeds that say something."""
    told = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(told)) if told else None


def markdown(files: Sequence[Path]) -> str:
    """A page: what it means, the table, how it was counted."""
    config = read(files[0])["config"]
    lines = lines_of(files)
    head = " | ".join(f"{what}, %" for what in SHARES.values())
    parts = [
        f"# Receipts: {config['model']}\n\n{_message(lines)}\n\n",
        f"| method | keep | tokens | {head} |\n| :-- | --: | --: | --: | --: | --: |\n",
    ]
    for one in lines:
        tokens = "" if one.tokens is None else f"{one.tokens:.0f}"
        cells = [_cell(one.found.get(name)) for name in SHARES]
        cells = [f"refused: {one.refused}", "", ""] if one.refused else cells
        name = f"{one.method}, equal pixels" if one.method == SMALLER else f"`{one.method}`"
        parts.append(f"| {name} | {one.keep:g} | {tokens} | {' | '.join(cells)} |\n")
    height = config["text_height"]
    shown = (
        f"scaled so that a line is about {height:g} pixels tall and cut in tiles, one budget over "
        "all of them" if height else "as the model's own processor cuts them"
    )  # fmt: skip
    engine = config["engine"] or "tesseract was not run: it is not installed"
    parts.append(
        f"\n{len(files)} documents, {shown}. *Words whole*: words of which {WHOLE:.0%} of the box "
        "lies under tokens kept as themselves (not merged into others). *Reads*: share of the "
        f"labelled words, dropped tokens painted over ({engine}). *{SMALLER}*: the picture made "
        "smaller to that share of its pixels, and enlarged again. Mean over documents, 95 % "
        "bootstrap interval.\n"
    )
    return "".join(parts)


def table(files: Sequence[Path]) -> str:
    """The same as CSV."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    ends = [f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")]
    sheet.writerow(["method", "keep", "tokens", *ends, "refused"])
    for one in lines_of(files):
        numbers = []
        for name in SHARES:
            got = one.found.get(name)
            numbers += [f"{v:.4f}" for v in (got.mean, got.low, got.high)] if got else [""] * 3
        tokens = "" if one.tokens is None else f"{one.tokens:.1f}"
        sheet.writerow([one.method, f"{one.keep:g}", tokens, *numbers, one.refused])
    return out.getvalue()


def _cell(one: Estimate | None) -> str:
    return f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" if one else ""


def _message(lines: Sequence[Line]) -> str:
    tried = [one for one in lines if one.keep < 1 and one.found]
    if not tried:
        return "Nothing was compared."
    fewest = min(one.keep for one in tried)
    name = "read" if any("read" in one.found for one in tried) else "words"
    at = [one for one in tried if one.keep == fewest and name in one.found]
    best = max(at, key=lambda one: one.found[name].mean)
    return (
        f"At keep {fewest:g}, {best.method} leaves most: {100 * best.found[name].mean:.1f} % "
        f"({SHARES[name]})."
    )
