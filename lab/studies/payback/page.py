"""docs/results/payback.md from the records of `lab.studies.payback.measure` and `.kept`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lab.report.markdown import NOT_RUN, table
from lab.report.page import document, fold
from lab.studies.payback.spec import BESIDE, SHIPPED, shapes
from tokensieve.errors import InputError
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import Record, read_all
from tokensieve.files import write_text

MADE = (
    "`python -m lab.studies.payback.measure lab/studies/payback/suite.json` and "
    "`python -m lab.studies.payback.kept lab/studies/payback/suite.json` from the records"
)
FEWEST = 0.1  # beside the middle one, the share that the small table goes by
AT = 0.2
MOST = 3.0  # times `divprune` that choosing may take


def write_page(suite: Suite, times: Path, root: Path) -> None:
    """Write the page. Raises `InputError` where there are no times."""
    every = list(read_all(times))
    found = [record for record in every if record.get("form") == "payback"]
    if not found:
        raise InputError(f"Expected records in {times}. Run python -m lab.studies.payback.measure.")
    kept = [record for record in every if record.get("form") == "payback-kept"]
    write_text(root / "docs" / "results" / "payback.md", page(suite, found, kept))


def page(suite: Suite, found: Sequence[Record], kept: Sequence[Record]) -> str:
    """The whole of docs/results/payback.md."""
    models = sorted((r for r in found if r["config"]["model"]), key=lambda r: r["config"]["model"])
    wide = sorted(
        (r for r in found if not r["config"]["model"]), key=lambda r: r["config"]["width"]
    )
    names = [SHIPPED, *[shape.name for shape in shapes(suite)], BESIDE]
    parts = [
        table(small(suite, kept, names, models, wide)),
        told(suite, kept, models, found),
        "## Everything",
        fold("Questions with all their patches kept, %", table(
            [["width x layers", *[f"{keep:g}" for keep in suite.keeps]],
             *[[n, *[percent(kept, n, keep) for keep in suite.keeps]] for n in names]])),
        *[fold(f"`{r['config']['model']}`, {r['config']['tokens']:,} tokens: choosing and prefill, "
               "of full's prefill", table(ratios(r, names, suite.keeps))) for r in models],
        *[fold(f"{r['config']['tokens']:,} tokens of width {r['config']['width']:,}: choosing, of "
               f"`{BESIDE}`", table(ratios(r, names, suite.keeps))) for r in wide],
        *[fold(f"{r['config']['tokens']:,} tokens of width {r['config']['width']:,}: the layers "
               "alone, ms", table(layers(r))) for r in wide],
    ]  # fmt: skip
    return document("What the selector's size is worth", message(suite, models, wide, names),
                    parts, MADE)  # fmt: skip


def told(
    suite: Suite, kept: Sequence[Record], models: Sequence[Record], found: Sequence[Record]
) -> str:
    """What the small table's columns mean, and what it cannot show."""
    asked = kept[0]["rows"][0]["questions"] if kept and kept[0]["rows"] else 0
    quality = (
        f"*kept at*: of {asked:,} questions about {suite.pictures} pages each of "
        f"{', '.join(suite.kinds)} (split `{suite.split}`) those with every patch of key and value "
        "kept, in per cent; no reader has a say. The shapes are trained much shorter than what "
        f"ships (`{SHIPPED}`), all alike, one seed. " if asked else ""
    )  # fmt: skip
    on = " and ".join(f"`{r['config']['model']}` ({r['config']['tokens']:,})" for r in models)
    return (
        f"{quality}*of prefill*: compressing one page and the prefill that is left, of full's "
        f"prefill alone, the worst of {', '.join(f'{keep:g}' for keep in suite.keeps)}; visual "
        f"tokens of a page: {on}. *of `{BESIDE}`*: choosing among 2,880 tokens of an encoder of "
        f"that width, the worst of the same shares. {where(found)} Float32, batch 1. Small models: "
        "fixed costs of a call weigh more than in a large one. On a GPU nothing was measured."
    )


def of(record: Record, name: str, keep: float) -> float | None:
    """One ratio of a record; None where not measured."""
    rows: Iterable[dict[str, Any]] = record["rows"]
    for row in rows:
        if (row["name"], row["keep"]) == (name, keep):
            return float(row["ratio"])
    return None


def worst(record: Record, name: str, keeps: Sequence[float]) -> float | None:
    """The largest ratio over the shares kept; None where none was measured."""
    known = [r for keep in keeps if (r := of(record, name, keep)) is not None]
    return max(known, default=None)


def shown(value: float | None) -> str:
    """A ratio, or that it was not measured."""
    return NOT_RUN if value is None else f"{value:.2f}"


def percent(kept: Sequence[Record], name: str, keep: float) -> str:
    """Questions of which nothing is lost, mean over seeds."""
    shares = [
        row["whole"] / row["questions"]
        for record in kept
        for row in record["rows"]
        if (row["name"], row["keep"]) == (name, keep)
    ]
    return f"{100 * mean(shares):.1f}" if shares else NOT_RUN


def small(
    suite: Suite, kept: Sequence[Record], names: Sequence[str], models: Sequence[Record],
    wide: Sequence[Record],
) -> list[list[str]]:  # fmt: skip
    """Shapes down; what is kept at two shares, and the worst of each time."""
    keeps = [keep for keep in (FEWEST, AT) if keep in suite.keeps]
    rows = [["width x layers", *[f"kept at {keep:g}" for keep in keeps],
             *[f"of prefill, `{r['config']['model']}`" for r in models],
             *[f"of `{BESIDE}`, {r['config']['width']:,} wide" for r in wide]]]  # fmt: skip
    for name in names:
        row = [f"`{name}`" if name == BESIDE else name]
        row += [percent(kept, name, keep) for keep in keeps]
        times = [worst(record, name, suite.keeps) for record in [*models, *wide]]
        rows.append(row + ["" if name == SHIPPED and t is None else shown(t) for t in times])
    return rows


def ratios(record: Record, names: Sequence[str], keeps: Sequence[float]) -> list[list[str]]:
    """Shapes down, shares across."""
    rows = [["width x layers", *[f"{keep:g}" for keep in keeps]]]
    measured = [name for name in names if worst(record, name, keeps) is not None]
    return rows + [[n, *[shown(of(record, n, keep)) for keep in keeps]] for n in measured]


def layers(record: Record) -> list[list[str]]:
    """Shapes down, precisions across."""
    spent = {(row["name"], row["dtype"]): row["ms"] for row in record["layers"]}
    dtypes = list(dict.fromkeys(dtype for _, dtype in spent))
    names = list(dict.fromkeys(name for name, _ in spent))
    rows = [["width x layers", *dtypes]]
    for name in names:
        times = [spent.get((name, dtype)) for dtype in dtypes]
        rows.append([name, *["" if t is None else f"{t:,.0f}" for t in times]])
    return rows


def where(found: Sequence[Record]) -> str:
    """On what the times were measured."""
    cpus = sorted({record["machine"]["cpu"] for record in found})
    threads = sorted({record["config"]["threads"] for record in found})
    return f"Times of CPU, {' or '.join(map(str, threads))} thread(s) of {' and '.join(cpus)}."


def message(
    suite: Suite, models: Sequence[Record], wide: Sequence[Record], names: Sequence[str]
) -> str:
    """What the shipped selector costs, and which shapes stay within both bounds everywhere."""
    said = [
        f"at most {share:.2f} of full's prefill on `{r['config']['model']}`"
        for r in models
        if (share := worst(r, SHIPPED, suite.keeps)) is not None
    ]
    tried = [name for name in names if name not in (BESIDE, SHIPPED)]
    within = [
        name
        for name in tried
        if all((worst(r, name, suite.keeps) or MOST) < 1 for r in models)
        and all((worst(r, name, suite.keeps) or MOST + 1) <= MOST for r in wide)
    ]
    ours = f"Choosing by the shipped weights and the prefill left: {' and '.join(said)}. "
    return (
        f"{ours if said else ''}Below full's prefill at every share, and choosing within "
        f"{MOST:g} times `{BESIDE}`: {', '.join(within) or 'none'} of {len(tried)}."
    )
