"""Every method beside every other: `python -m lab.studies.methods.page`.

Writes docs/results/comparison.md and its figure from the records of lab/studies/methods/suite.json.
"""

from __future__ import annotations

from pathlib import Path

from lab.report import markdown
from lab.report.beside import by_kind
from lab.report.board import Board, Place
from lab.report.draw import save
from lab.report.glance import best_rows, figure, message
from lab.report.opened import how_to_run, open_board
from lab.report.page import NANO, document, fold
from lab.report.rivals import RENUMBERED, Timed, kept_rows, panels, times_of
from tokensieve.evaluate.config import Suite
from tokensieve.files import write_text


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page and its figure."""
    suite, board, options = open_board(arguments, str(__doc__), "lab/studies/methods/suite.json")
    times, docs = times_of(options.results / "prefill"), options.root / "docs"
    write_text(docs / "results" / "comparison.md", page(board, suite, options.suite, times))
    save(figure(board, suite, times), docs / "figures/comparison.png")


def page(board: Board, suite: Suite, suite_file: Path, times: Timed) -> str:
    """docs/results/comparison.md."""
    pictures = sorted({record["config"]["pictures"] for record in board.records})
    count = " or ".join(f"{n:,}" for n in pictures)
    parts = [
        "![quality against tokens and time](../figures/comparison.png)",
        markdown.table(best_rows(board, suite)),
        "Exact match in per cent, mean of the kinds and of their questions: the selector, and of "
        "each site the methods that read most at .1 of the tokens. *Per layer*: what a layer of "
        "the LLM holds on average when .2 is kept, in per cent; a row that holds more than the "
        "share says had more to read.",
        f"Measured on {count} held-out generated pictures per kind (split `{suite.split}`) with "
        "the embedded model; mean over three seeds where a method draws or is trained; options "
        "by default, positions as they were. It cannot show how methods that read attention do in "
        "a large model: this encoder has 4 layers, of which nothing reads the last one's CLS. Its "
        "LLM has 4 layers and has read most of a page by the second, so that a late cut costs "
        "nothing here and saves little.",
        *by_kind(board, suite),
        "## Positions renumbered",
        "Points that closing the gaps in position ids adds at each share, mean over all kinds and "
        "topics; the embedded model was trained with gaps.",
        fold("Every method", markdown.table(renumbered(board, suite))),
    ]
    if times:
        parts += ["## Time", _time_note(times),
                  fold("Every method", markdown.table(time_table(suite, times)))]  # fmt: skip
    return document(
        "Every method on the embedded model", message(board, suite), parts,
        f"`python -m lab.studies.methods.page` from `results/{suite.suite}/`",
        how_to_run(suite_file), NANO,
    )  # fmt: skip


def renumbered(board: Board, suite: Suite) -> list[list[str]]:
    """What renumbering changes, method by method: keeps across."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [["points", *[f"{keep:g}" for keep in keeps]]]
    names = {v.name for v in suite.variants}
    for variant in kept_rows(suite):
        other = f"{variant.name}{RENUMBERED}"
        if other not in names:
            continue
        cells = []
        for keep in keeps:
            gaps = [
                closed.mean - left.mean
                for kind, topic in panels(board, suite)
                if (closed := board.estimate(Place("main", other, kind, topic, keep)))
                and (left := board.estimate(Place("main", variant.name, kind, topic, keep)))
            ]
            cells.append(f"{100 * sum(gaps) / len(gaps):+.1f}" if gaps else "")
        if any(cells):
            rows.append([variant.name, *cells])
    return rows


def _time_note(times: Timed) -> str:
    one = next(iter(times.values()))
    return str(one["note"])


def time_table(suite: Suite, times: Timed) -> list[list[str]]:
    """Encode, select and prefill together as a share of full's, keeps across."""
    keeps = [keep for keep in suite.keeps if keep < 1]
    rows = [["time of the whole pass, of full's", *[f"{keep:g}" for keep in keeps]]]
    for variant in kept_rows(suite):
        if variant.method in times:
            by_keep = {row["keep"]: row for row in times[variant.method]["rows"]}
            cells = [f"{by_keep[k]['whole']:.2f}" if k in by_keep else "" for k in keeps]
            rows.append([variant.name, *cells])
    return rows


if __name__ == "__main__":
    main()
