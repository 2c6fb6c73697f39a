"""docs/results/mirror.md from the records of `lab.studies.mirror.measure`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from lab.report.markdown import table
from lab.report.page import document, fold
from lab.studies.mirror.measure import MIRRORED, MOVED, SAME, SHIPPED, TOP
from tokensieve.errors import InputError
from tokensieve.evaluate.records import Record, read_all
from tokensieve.files import write_text

AT = 0.2
ASKED = 0.8  # the overlap that was aimed at


def write_page(folder: Path, root: Path) -> None:
    """Write the page. Raises `InputError` where there are no records."""
    found = [record for record in read_all(folder) if record.get("form") == "mirror"]
    if not found:
        raise InputError(f"Expected records in {folder}. Run python -m lab.studies.mirror.measure.")
    write_text(root / "docs" / "results" / "mirror.md", page(found))


def page(found: Sequence[Record]) -> str:
    """The whole of docs/results/mirror.md."""
    first = found[0]["config"]
    parts = [
        *[part for record in found for part in (
            f"`{record['config']['model']}`, mean of {', '.join(record['config']['kinds'])}:",
            table(small(record)))],
        "Tokens in both kept sets over tokens in either, the view's set laid back on the picture; "
        f"{first['pictures']} pictures of a kind, split `{first['split']}`, shipped weights. "
        f"*{MOVED}*: to the right, so every token has another place and shows what it did. "
        f"*{SAME}*: only distances between tokens can differ then. No interval: differences of a "
        "few hundredths say nothing.",
        *[fold(f"`{record['config']['model']}`, kind by kind, {SHIPPED}", table(by_kind(record)))
          for record in found],
    ]  # fmt: skip
    return document("Mirrored pictures", message(found), parts,
                    "`python -m lab.studies.mirror.measure` from the records")  # fmt: skip


def of(record: Record, rule: str, view: str, keep: float, kind: str | None = None) -> float:
    """One overlap, mean of the kinds where none is named."""
    return mean(
        float(row["overlap"])
        for row in record["rows"]
        if (row["rule"], row["view"], row["keep"]) == (rule, view, keep)
        and kind in (None, row["kind"])
    )


def small(record: Record) -> list[list[str]]:
    """Views and rules down, shares across."""
    keeps = record["config"]["keeps"]
    rows = [["view, rule", *[f"{keep:g}" for keep in keeps]]]
    return rows + [
        [f"{view}, {rule}", *[f"{of(record, rule, view, keep):.2f}" for keep in keeps]]
        for view in (MIRRORED, MOVED)
        for rule in (SHIPPED, TOP, SAME)
    ]


def by_kind(record: Record) -> list[list[str]]:
    """Views and kinds down, shares across."""
    keeps = record["config"]["keeps"]
    rows = [["view, kind", *[f"{keep:g}" for keep in keeps]]]
    return rows + [
        [f"{view}, {kind}", *[f"{of(record, SHIPPED, view, keep, kind):.2f}" for keep in keeps]]
        for view in (MIRRORED, MOVED)
        for kind in record["config"]["kinds"]
    ]


def message(found: Sequence[Record]) -> str:
    """How much is mirrored, beside what a mere move leaves."""
    said = []
    for record in found:
        mirrored, moved = (of(record, SHIPPED, view, AT) for view in (MIRRORED, MOVED))
        kinds = record["config"]["kinds"]
        above = [k for k in kinds if of(record, SHIPPED, MIRRORED, AT, k) > ASKED]
        said.append(
            f"`{record['config']['model']}` {mirrored:.2f} (moved by a patch {moved:.2f}), above "
            f"{ASKED:g} in {len(above)} of {len(kinds)} kinds"
        )
    return f"Overlap with what the mirror image keeps, {AT:g} of the tokens: {'; '.join(said)}."
