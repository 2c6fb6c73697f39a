"""docs/results/payback.md from the records of `lab.run` and `lab.studies.payback.measure`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.report.board import Board
from lab.report.markdown import NOT_RUN, table
from lab.report.page import document, fold
from lab.studies.payback.spec import shapes
from tokensieve.errors import InputError
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import Record, read_all
from tokensieve.files import write_text

BESIDE = "divprune"
AT = 0.2  # the share that the small table goes by


def write_page(suite: Suite, times: Path, root: Path) -> None:
    """Write the page. Raises `InputError` where there are no times."""
    found = [record for record in read_all(times) if record.get("form") == "payback"]
    if not found:
        raise InputError(f"Expected records in {times}. Run python -m lab.studies.payback.measure.")
    board = Board.of(times.parent / suite.suite)
    write_text(root / "docs" / "results" / "payback.md", page(suite, board, found))


def page(suite: Suite, board: Board, found: Sequence[Record]) -> str:
    """The whole of docs/results/payback.md."""
    models = [record for record in found if record["config"]["model"]]
    wide = [record for record in found if not record["config"]["model"]]
    names = [*[shape.name for shape in shapes(suite)], BESIDE]
    seeds = max((len(v.per_seed.get("weights", [])) for v in suite.variants), default=0)
    parts = [
        table(small(suite, board, names, models, wide)),
        f"*right*: exact match in per cent, mean of the kinds ({', '.join(suite.kinds)}), "
        f"{suite.pictures} pictures of each, split `{suite.split}`, {seeds} seed(s) a shape. *of "
        "prefill*: compressing one page and the prefill that is left, of full's prefill alone, the "
        f"worst of {', '.join(f'{keep:g}' for keep in suite.keeps)}. *of `{BESIDE}`*: choosing "
        "among the tokens of an encoder of that width, the worst of the same shares, float32. "
        f"{where(found)} Small models: fixed costs of a call weigh more than in a large one.",
        "## Everything",
        fold("Exact match by share kept, %", table(quality(suite, board, names))),
        *[fold(f"`{r['config']['model']}`: choosing and prefill, of full's prefill",
               table(ratios(r, names, suite.keeps, "float32"))) for r in models],
        *[fold(f"{r['config']['tokens']:,} tokens of width {r['config']['width']:,}: choosing, of "
               f"`{BESIDE}` in the same precision",
               *[f"{dtype}\n\n" + table(ratios(r, names, suite.keeps, dtype))
                 for dtype in dict.fromkeys(row["dtype"] for row in r["rows"])]) for r in wide],
    ]  # fmt: skip
    made = "`python -m lab.studies.payback.measure lab/studies/payback/suite.json`"
    return document("What the selector's size is worth", message(suite, board, models, names),
                    parts, f"{made} from the records")  # fmt: skip


def of(record: Record, name: str, keep: float, dtype: str) -> float | None:
    """One ratio of a record; None where not measured."""
    rows: Iterable[dict[str, Any]] = record["rows"]
    for row in rows:
        if (row["name"], row["keep"], row["dtype"]) == (name, keep, dtype):
            return float(row["ratio"])
    return None


def worst(record: Record, name: str, keeps: Sequence[float]) -> float | None:
    """The largest ratio over the shares kept, float32; None where none was measured."""
    known = [r for keep in keeps if (r := of(record, name, keep, "float32")) is not None]
    return max(known, default=None)


def shown(value: float | None) -> str:
    """A ratio, or that it was not measured."""
    return NOT_RUN if value is None else f"{value:.2f}"


def percent(suite: Suite, board: Board, name: str, keep: float) -> str:
    """Exact match over all kinds, of the first model."""
    share = board.overall(next(iter(suite.models)), name, keep, suite.kinds)
    return NOT_RUN if share is None else f"{100 * share:.1f}"


def small(
    suite: Suite, board: Board, names: Sequence[str], models: Sequence[Record],
    wide: Sequence[Record],
) -> list[list[str]]:  # fmt: skip
    """Shapes down: quality at the least share and at `AT`, and the worst of each time."""
    keeps = [suite.keeps[0], AT] if AT in suite.keeps else [suite.keeps[0]]
    rows = [["width x layers", *[f"right at {keep:g}" for keep in keeps],
             *[f"of prefill, `{r['config']['model']}`" for r in models],
             *[f"of `{BESIDE}`, {r['config']['width']:,} wide" for r in wide]]]  # fmt: skip
    for name in names:
        told = [percent(suite, board, name, keep) for keep in keeps]
        told += [shown(worst(record, name, suite.keeps)) for record in [*models, *wide]]
        rows.append([f"`{name}`" if name == BESIDE else name, *told])
    return rows


def quality(suite: Suite, board: Board, names: Sequence[str]) -> list[list[str]]:
    """Shapes down, shares across."""
    rows = [["mean of the kinds", *[f"{keep:g}" for keep in suite.keeps]]]
    return rows + [
        [name, *[percent(suite, board, name, keep) for keep in suite.keeps]] for name in names
    ]


def ratios(
    record: Record, names: Sequence[str], keeps: Sequence[float], dtype: str
) -> list[list[str]]:
    """Shapes down, shares across."""
    rows = [["width x layers", *[f"{keep:g}" for keep in keeps]]]
    return rows + [[n, *[shown(of(record, n, keep, dtype)) for keep in keeps]] for n in names]


def where(found: Sequence[Record]) -> str:
    """On what the times were measured."""
    cpus = sorted({record["machine"]["cpu"] for record in found})
    threads = sorted({record["config"]["threads"] for record in found})
    return f"Times of CPU, {' or '.join(map(str, threads))} thread(s) of {' and '.join(cpus)}."


def message(suite: Suite, board: Board, models: Sequence[Record], names: Sequence[str]) -> str:
    """Which shapes cost less than they save, everywhere, and which of them reads best."""
    tried = [name for name in names if name != BESIDE]
    spent = {name: [worst(record, name, suite.keeps) for record in models] for name in tried}
    pays = [n for n, of_model in spent.items() if of_model and all((w or 9) < 1 for w in of_model)]
    model, keep = next(iter(suite.models)), suite.keeps[0]
    right = {n: r for n in tried if (r := board.overall(model, n, keep, suite.kinds)) is not None}
    said = f"Below full's prefill at every share: {', '.join(pays) or 'none'} of {len(tried)}."
    if right:
        best = max(right, key=lambda name: right[name])
        said += f" Most right at {keep:g}: {best} with {100 * right[best]:.1f} %"
        cheap = [name for name in pays if name in right and name != best]
        told = ", ".join(f"{name} {100 * right[name]:.1f}" for name in cheap)
        said += f"; of those that pay {told}." if cheap else "."
    return said
