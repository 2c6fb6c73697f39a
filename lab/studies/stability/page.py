"""docs/results/stability.md from the records of `lab.studies.stability.measure`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.report.markdown import table
from lab.report.page import NANO, document, fold
from lab.studies.stability.measure import AS_IT_WAS, CROP, PRECISION, VIEWS, overlap, unpack_kept
from tokensieve.errors import InputError
from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import bootstrap_mean, unpack_counts, unpack_hits
from tokensieve.files import write_text

Row = Mapping[str, Any]
Values = NDArray[np.float64]
MIDDLE = 0.2  # the share that the small table goes by


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
        table(small(found)),
        "Tokens in both sets over tokens in either, in per cent, mean of the kinds of pictures, "
        f"{MIDDLE:g} of the tokens kept. Random tokens are drawn anew for every view: that is "
        f"chance. *{CROP}*: 1 to 5 % of each side cut off, drawn per side and picture, and the "
        "rest enlarged to the old size; even the same choice of content then falls on other "
        "tokens. Other columns: brightness times that number.",
        f"Measured on {config['pictures']} pictures a kind of the split `{config['split']}`, means "
        "over pictures and the selector's training seeds, in brackets below 95 % bootstrap "
        "intervals over pictures. It cannot show what other changes do: rotation, noise, "
        "compression.",
        "## Kind by kind",
        "A token of a cropped picture counts as the one of the whole picture under its centre. "
        "*same content*: what tokens showing just what was kept before would reach. *full*: all "
        "tokens, what the model itself bears.",
        fold("Overlap with what was kept of the picture as it was",
             numbers(found, changed, _overlaps, same_content=True)),
        fold("Agreement with the answer to the picture as it was",
             numbers(found, changed, lambda row: _hits(row, "agreements"))),
        fold("Exact match", numbers(found, list(VIEWS), lambda row: _hits(row, "hits"))),
        "## Overlap between training seeds",
        "Pictures as they were; mean over all pairs of the selector's seeds.",
        seeds_table(found),
    ]  # fmt: skip
    return document("Stability of what is kept", message(found), parts,
                    "`python -m lab.studies.stability.measure` from the records",
                    on=NANO)  # fmt: skip


def mean_overlap(found: Sequence[Record], method: str, view: str) -> float | None:
    """Overlap at `MIDDLE`, mean of kinds, pictures and seeds; None where not run."""
    config = found[0]["config"]
    keep = MIDDLE if MIDDLE in config["keeps"] else config["keeps"][0]
    means = []
    for kind in config["kinds"]:
        rows = rows_of(found, method, kind, keep, view)
        if not rows:
            return None
        means.append(float(np.mean([_overlaps(row) for row in rows])))
    return float(np.mean(means))


def small(found: Sequence[Record]) -> list[list[str]]:
    """Methods down, views across."""
    changed = [view for view in VIEWS if view != AS_IT_WAS]
    rows = [["overlap, %", *changed]]
    for method in methods_of(found):
        means = [mean_overlap(found, method, view) for view in changed]
        if any(mean is not None for mean in means):  # all tokens have no other choice
            rows.append([f"`{method}`", *["" if m is None else f"{100 * m:.1f}" for m in means]])
    return rows


def message(found: Sequence[Record]) -> str:
    """How much of the choice stays, beside the others and chance."""
    said = []
    for view in [view for view in (CROP, "0.9") if view in VIEWS]:
        means = {m: mean_overlap(found, m, view) for m in methods_of(found)}
        told = [f"`{m}` {100 * v:.0f}" for m, v in means.items() if v is not None]
        what = "a crop" if view == CROP else "a tenth less light"
        said.append(f"after {what}: {', '.join(told)}")
    return f"Overlap of what is kept before and after, in per cent; {'; '.join(said)}."


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
