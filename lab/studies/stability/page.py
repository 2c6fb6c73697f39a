"""docs/results/stability.md from the records of `lab.studies.stability.measure`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.report.markdown import table
from lab.studies.stability.measure import AS_IT_WAS, CROP, PRECISION, VIEWS, overlap, unpack_kept
from tokensieve.errors import InputError
from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import bootstrap_mean, unpack_counts, unpack_hits
from tokensieve.files import write_text

Row = Mapping[str, Any]
Values = NDArray[np.float64]


def write_page(folder: Path, root: Path) -> None:
    """Write the page. Raises `InputError` where there are no records."""
    found = [record for record in read_all(folder) if record.get("form") == "stability"]
    if not found:
        raise InputError(
            f"Expected records in {folder}. Run python -m lab.studies.stability.measure."
        )
    write_text(root / "docs" / "results" / "stability.md", page(found))


def page(found: Sequence[Record]) -> str:
    """The whole of docs/results/stability.md."""
    config = found[0]["config"]
    changed = [view for view in VIEWS if view != AS_IT_WAS]
    parts = [
        "# Stability of what is kept",
        "Made from the records by `python -m lab.studies.stability.measure`; do not edit. "
        f"{config['pictures']} pictures a kind of the split `{config['split']}`; per cent, means "
        "over pictures (and over the selector's training seeds), in brackets 95 % bootstrap "
        "intervals over pictures.",
        f"*{CROP}*: 1 to 5 % of each side cut off, drawn per side and picture, and the rest "
        "enlarged to the old size. Other columns: brightness times that number. Random tokens are "
        "drawn anew for every view: the level of chance. *full*: all tokens, what the model itself "
        "bears.",
        "## Overlap with what was kept of the picture as it was",
        "Tokens in both sets over tokens in either. A token of a cropped picture counts as the one "
        "of the whole picture under its centre. After a crop even the same choice of content falls "
        "on other tokens: *same content* is what tokens showing just what was kept before would "
        "reach.",
        numbers(found, changed, _overlaps, same_content=True),
        "## Agreement with the answer to the picture as it was",
        numbers(found, changed, lambda row: _hits(row, "agreements")),
        "## Exact match",
        numbers(found, list(VIEWS), lambda row: _hits(row, "hits")),
        "## Overlap between training seeds",
        "Pictures as they were; mean over all pairs of the selector's seeds.",
        seeds_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def _overlaps(row: Row) -> Values:
    return np.asarray(unpack_counts(row["overlaps"]) / PRECISION)


def _hits(row: Row, name: str) -> Values:
    return unpack_hits(row[name], row["n"]).astype(np.float64)


def methods_of(found: Sequence[Record]) -> list[str]:
    """Names of methods, the selector first."""
    names = dict.fromkeys(record["config"]["method"] for record in found)
    return sorted(names, key=lambda name: (name != "selector", name))


def rows_of(found: Sequence[Record], method: str, kind: str, keep: float, view: str) -> list[Row]:
    """One row per seed."""
    return [
        row
        for record in found
        if record["config"]["method"] == method
        for row in record["rows"]
        if (row["kind"], row["keep"], row["view"]) == (kind, keep, view)
    ]


def cell(values: Values) -> str:
    """Mean and interval in per cent."""
    mean = bootstrap_mean(values)
    return f"{100 * mean.mean:.1f} ({100 * mean.low:.1f}–{100 * mean.high:.1f})"


def numbers(
    found: Sequence[Record],
    views: Sequence[str],
    values: Callable[[Row], Values],
    *,
    same_content: bool = False,
) -> str:
    """Kinds, keeps and methods down, views across."""
    config = found[0]["config"]
    rows = [["kind, keep, method", *views]]
    places = [(keep, method) for keep in config["keeps"] for method in methods_of(found)]
    for kind in config["kinds"]:
        for keep, method in [*places, (1.0, "full")]:
            seeds = [rows_of(found, method, kind, keep, view) for view in views]
            if not all(seeds) or (method == "full" and same_content):
                continue
            cells = [cell(np.mean([values(row) for row in of_view], 0)) for of_view in seeds]
            rows.append([f"{kind}, {keep:g}, {method}", *cells])
            if same_content and method == "selector":
                best = rows_of(found, "selector", kind, keep, CROP)
                most = float(np.mean([row["same_content"] for row in best]))
                rows.append([f"{kind}, {keep:g}, *same content*", f"{100 * most:.1f}",
                             *[""] * (len(views) - 1)])  # fmt: skip
    return table(rows)


def seeds_table(found: Sequence[Record]) -> str:
    """Kinds down, keeps across."""
    config = found[0]["config"]
    rows = [["kind", *[f"{keep:g}" for keep in config["keeps"]]]]
    for kind in config["kinds"]:
        cells = []
        for keep in config["keeps"]:
            seeds = rows_of(found, "selector", kind, keep, AS_IT_WAS)
            kept = [unpack_kept(row["kept"], row["n"]) for row in seeds]
            pairs = [
                [overlap(a, b) for a, b in zip(one, other, strict=True)]
                for one, other in combinations(kept, 2)
            ]
            cells.append(cell(np.mean(pairs, axis=0)) if pairs else "one seed only")
        rows.append([kind, *cells])
    return table(rows)
