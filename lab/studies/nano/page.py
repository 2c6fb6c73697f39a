"""Rebuild every table and plot from the records: `python -m lab.studies.nano.page`.

Writes results/<suite>/scores.csv, docs/results/nano.md, docs/figures/nano.png and the README's
block of results.
"""

from __future__ import annotations

from pathlib import Path

from lab.report import markdown
from lab.report.board import Board
from lab.report.draw import save
from lab.report.lead import (
    BASELINES,
    OURS,
    best_peer,
    measured,
    message,
    present,
    small_table,
)
from lab.report.opened import how_to_run, open_board
from lab.report.page import NANO, document, fold, put_block
from lab.report.quality import Times, figure, times_of
from tokensieve.errors import InputError
from tokensieve.evaluate.config import Suite
from tokensieve.evaluate.records import read_all
from tokensieve.files import write_text

RANKING = "selector-ranking"
PRESETS = ("preset-wlie", "preset-wlie-literal", "preset-two-sided")
PEERS = ("divprune", "pixel-variance", "feature-norm", *BASELINES, *PRESETS)
SHARED = (OURS, RANKING, "selector-features", "divprune", "random")
LIMITS = (
    "Generated pictures and a model of its own size: it cannot show what a method keeps of real "
    "photographs or of a large model's answers, nor that time is saved, which takes a larger LLM."
)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write everything."""
    suite, board, options = open_board(arguments, str(__doc__), "lab/studies/nano/suite.json")
    write_text(options.results / suite.suite / "scores.csv", markdown.as_csv(board, suite))
    docs, times = options.root / "docs", times_of(options.results)
    names = present(suite, (OURS, *PEERS))
    save(figure(board, suite, names, best_peer(board, suite), times),
         docs / "figures" / f"{suite.suite}.png")  # fmt: skip
    extra = records_of(options.results, "timing")
    write_text(docs / "results" / "nano.md", page(board, suite, options.suite, times, extra))
    readme = options.root / "README.md"
    if readme.exists():  # a folder to look at pages in has none
        put_block(readme, "results", readme_block(board, suite, times))


def records_of(results: Path, form: str) -> list[dict[str, object]]:
    """Records of another form than scores, from any suite."""
    return [r for d in sorted(results.glob("*/")) for r in read_all(d) if r.get("form") == form]


def readme_block(board: Board, suite: Suite, times: Times) -> str:
    """One small table, what it was measured on and what it cannot show."""
    return "\n\n".join([
        small_table(board, suite, times),
        f"{measured(board, suite, NANO)} Time: encoding, choosing and prefill on one thread, as a "
        f"share of all tokens'. {LIMITS} Kind by kind, with intervals: "
        "[docs/results/nano.md](docs/results/nano.md). Every method beside every other, on fewer "
        "pictures: [docs/results/comparison.md](docs/results/comparison.md).",
    ])  # fmt: skip


def page(
    board: Board, suite: Suite, suite_file: Path, times: Times, extra: list[dict[str, object]]
) -> str:
    """docs/results/nano.md."""
    parts = [
        f"![quality against tokens and time](../figures/{suite.suite}.png)",
        small_table(board, suite, times),
        f"{measured(board, suite, NANO)} {LIMITS} Every method beside every other, on fewer "
        "pictures: [comparison](comparison.md).",
        "## Kind by kind",
        "Exact match in per cent by the share of visual tokens kept, seeds averaged, in brackets "
        "the 95 % bootstrap interval over pictures. At 1 every method is the identity. All rows, "
        f"seeds and costs as numbers: `results/{suite.suite}/scores.csv`.",
    ]
    for model in suite.models:
        names = [v.name for v in suite.variants if v.models is None or model in v.models]
        parts += [
            fold(f"{_of(model)}{markdown.title(kind, topic)}",
                 markdown.scores(board, suite, model, kind, topic, variants=names,
                                 intervals=True))
            for kind, topic in board.panels(suite.kinds)
        ]  # fmt: skip
    parts += ["## Share of what all tokens answer"]
    for model in suite.models:
        ran = [v.name for v in suite.variants if v.models is None or model in v.models]
        names = [name for name in SHARED if name in ran]
        parts.append(fold(f"{_of(model)}per cent of full",
                          markdown.of_full(board, suite, model, variants=names)))  # fmt: skip
    parts += [
        "## Paired differences",
        "Same pictures, seeds averaged per picture; an interval that spans 0 is no win.",
    ]
    for ours in present(suite, (OURS, RANKING)):
        peers = [p for p in present(suite, (*PEERS, OURS, RANKING)) if p != ours]
        parts += [
            fold(f"{ours} on {kind}, {topic}",
                 markdown.comparison(board, suite, "main", kind, topic, ours=ours, peers=peers))
            for kind, topic in board.panels(suite.kinds)
        ]  # fmt: skip
    parts += [extra_table(record) for record in extra]
    made = f"`python -m lab.studies.nano.page` from `results/{suite.suite}/`"
    return document("What the selector keeps of the answers", message(board, suite), parts,
                    made, how_to_run(suite_file), NANO)  # fmt: skip


def _of(model: str) -> str:
    return "" if model == "main" else f"Model {model}: "


def extra_table(record: dict[str, object]) -> str:
    """A record that brings its own table: {"title", "note", "table"}."""
    rows = record["table"]
    if not isinstance(rows, list):
        raise InputError("Expected a `table` of rows in this record. Re-run it.")
    return f"## {record['title']}\n\n{record['note']}\n\n{markdown.table(rows)}"


if __name__ == "__main__":
    main()
