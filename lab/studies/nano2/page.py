"""Tables and figures of nano 2's suite from its records: `python -m lab.studies.nano2.page`.

Writes docs/results/nano2.md, its figures and results/nano2/scores.csv. Without any record the page
says what to run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lab import command
from lab.report import markdown
from lab.report.board import Board, Place
from lab.report.draw import save
from lab.report.lead import (
    AT,
    BASELINES,
    OURS,
    best_peer,
    measured,
    message,
    present,
    small_table,
)
from lab.report.opened import how_to_run
from lab.report.page import document, fold
from lab.report.quality import Times, figure, four_lines, times_of
from tokensieve.evaluate.config import Suite, load_suite
from tokensieve.files import write_text

FOLDER = Path("lab/studies/nano2")
SUITE = FOLDER / "suite.json"
RANKING = "selector-ranking"
PEERS = ("divprune", "pixel-variance", "feature-norm", *BASELINES)
MODEL = "nano 2 (336 pixels, 576 tokens, typeset pages)"
ABOUT = (
    "Pages of layouts `lines` to `prose` by turns in fonts that were trained on and fonts that "
    "never were; *dense*: the fullest of three; *unseen*: layouts, words and fonts of the split "
    "alone; *blind*: values that a model without the picture guesses in part; *mixed*: a page with "
    "a photo-like panel. A token is 14 x 14 pixels, so `downsample` at equal tokens is also "
    "`downsample` at equal pixels, up to its grid. The pages are drawn: on real receipts see "
    "[receipts](receipts.md)."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results", type=Path, help="folder of records")
    parser.add_argument("--root", default=".", type=Path, help="where docs/ lies")
    parser.add_argument("--suite", default=SUITE, type=Path, help="a suite.json")
    options = command.parse(parser, arguments)
    suite = load_suite(options.suite)
    board = Board.of(options.results / suite.suite)
    times = times_of(options.results, "nano2")
    docs = options.root / "docs"
    if board.records:
        write_text(options.results / suite.suite / "scores.csv", markdown.as_csv(board, suite))
        drawn = [
            figure(board, suite, present(suite, (OURS, *PEERS)), best_peer(board, suite), times),
            four_lines(board, suite),
        ]
        drawn += [four_lines(board, suite, times)] if times else []
        for name, one in zip(FIGURES, drawn, strict=False):
            save(one, docs / "figures" / name)
    write_text(docs / "results" / "nano2.md", page(suite, board, times))


FIGURES = {
    "nano2.png": "quality against tokens and time",
    "nano2-tokens.png": "all tokens, selector, random, no image: quality against tokens, by kind",
    "nano2-time.png": "the same four against time, by kind",
}


def page(suite: Suite, board: Board, times: Times) -> str:
    """docs/results/nano2.md."""
    made = f"`python -m lab.studies.nano2.page` from `results/{suite.suite}/`"
    title = "What methods keep of the answers on typeset pages"
    if not board.records:
        said = "Not run yet: it takes a trained nano 2."
        return document(title, said, [ABOUT], made, how_to_run(SUITE), MODEL)
    shown = [f"![{what}](../figures/{name})" for name, what in FIGURES.items()]
    names = [variant.name for variant in suite.variants]
    everywhere = board.panels(suite.kinds)
    parts = [
        *(shown if times else shown[:2]),
        small_table(board, suite, times),
        f"{measured(board, suite, MODEL)} {ABOUT}",
        "## Kind by kind",
        "Exact match in per cent by the share of visual tokens kept, seeds averaged, in brackets "
        "the 95 % bootstrap interval over pictures.",
        *[fold(heading(kind, topic), markdown.scores(board, suite, "main", kind, topic,
                                                     variants=names, intervals=True))
          for kind, topic in everywhere],
        "## Fonts never seen, and dark pages",
        fold(f"All tokens and {AT:g} of them", markdown.table(by_group(board, suite))),
        "## Paired differences",
        "Same pictures, seeds averaged per picture; an interval that spans 0 is no win.",
    ]  # fmt: skip
    for ours in present(suite, (OURS, RANKING)):
        peers = [name for name in present(suite, (*PEERS, OURS, RANKING)) if name != ours]
        parts += [
            fold(f"{ours} on {heading(kind, topic)}",
                 markdown.comparison(board, suite, "main", kind, topic, ours=ours, peers=peers))
            for kind, topic in everywhere
        ]  # fmt: skip
    parts += ["Every method, and the question before the picture: "
              "[every method before the LLM, on typeset pages](nano2-methods.md)."]  # fmt: skip
    told = message(board, suite)
    return document(title, told, parts, made, how_to_run(SUITE), MODEL)


def heading(kind: str, topic: str) -> str:
    """A table's: nano 2's kinds are not those that `markdown.title` knows."""
    return kind if topic in ("text", kind) else f"{kind}: {topic}"


def by_group(board: Board, suite: Suite) -> list[list[str]]:
    """Right answers on pages of known and unknown fonts, light and dark, text of all kinds."""
    groups = ("seen font", "unseen font", "light", "dark")
    rows = [["right answers, %", *groups]]
    for name, keep in [("full", 1.0), *[(n, AT) for n in present(suite, (OURS, *PEERS))]]:
        sums = {group: [0, 0] for group in groups}
        for kind in suite.kinds:
            cell = board.cell(Place("main", name, kind, "text", keep))
            for row, group in ((r, g) for r in (cell.rows if cell else []) for g in groups):
                right, number = row["groups"].get(group, (0, 0))
                sums[group][0] += right
                sums[group][1] += number
        if any(number for _, number in sums.values()):
            shares = [markdown.percent(right / number) if number else "" for right, number in
                      sums.values()]  # fmt: skip
            rows.append([name, *shares])
    return rows


if __name__ == "__main__":
    command.run(main)
