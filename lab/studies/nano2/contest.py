"""Every method before the LLM, on typeset pages: `python -m lab.studies.nano2.contest`.

Writes docs/results/nano2-methods.md and its figure from the records of methods.json, and of
first.json, where the question stands before the picture too.
"""

from __future__ import annotations

from collections.abc import Sequence

from lab.report import markdown
from lab.report.beside import by_kind
from lab.report.board import Board
from lab.report.draw import save
from lab.report.glance import best_rows, figure, message
from lab.report.lead import measured
from lab.report.opened import how_to_run, open_board
from lab.report.page import document
from lab.report.rivals import Timed, times_of
from lab.studies.nano2.page import FOLDER, MODEL, heading
from tokensieve.evaluate.config import Suite, load_suite
from tokensieve.files import write_text

ABOUT = (
    "Exact match in per cent, mean of the kinds: the selector, and of each site the methods that "
    "read most at .1 of the tokens. *Per layer*: what a layer of the LLM holds on average when .2 "
    "is kept, in per cent; a row that holds more than the share says had more to read."
)
LIMITS = (
    "Options by default, positions as they were, the selector on three seeds. This model reads six "
    "of ten questions with all tokens, so a method can only lose what was read; its LLM has 4 "
    "layers, so a cut inside it saves little. It cannot show how methods that read attention do in "
    "a large model. Methods inside the encoder were not run on it."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the page and its figure."""
    given = None if arguments is None else list(arguments)
    suite, board, options = open_board(given, str(__doc__), str(FOLDER / "methods.json"))
    times, docs = times_of(options.results / "prefill", "nano2"), options.root / "docs"
    first = load_suite(options.suite.with_name("first.json"))
    other = (first, Board.of(options.results / first.suite))
    write_text(docs / "results" / "nano2-methods.md", page((suite, board), other, times))
    save(figure(board, suite, times), docs / "figures/nano2-methods.png")


def page(every: tuple[Suite, Board], question_first: tuple[Suite, Board], times: Timed) -> str:
    """docs/results/nano2-methods.md."""
    suite, board = every
    title = "Every method before the LLM, on typeset pages"
    made = f"`python -m lab.studies.nano2.contest` from `results/{suite.suite}/`"
    parts = [
        "![quality against tokens](../figures/nano2-methods.png)",
        markdown.table(best_rows(board, suite)),
        f"{ABOUT} {measured(board, suite, MODEL)} {LIMITS}",
        *in_front(*question_first),
        *by_kind(board, suite, heading),
    ]
    told = message(board, suite)
    return document(title, told, parts, made, how_to_run(FOLDER / "methods.json"), MODEL)


def in_front(suite: Suite, board: Board) -> list[str]:
    """What changes for methods that read the question where it stands before the picture too."""
    if not board.records:
        return []
    return [
        "## The question before the picture",
        f"**{message(board, suite)}**",
        markdown.table(best_rows(board, suite)),
        f"{measured(board, suite, MODEL)} The question stands before and behind the picture, so "
        "that visual tokens have read it when a method inside the LLM chooses among them.",
    ]


if __name__ == "__main__":
    main()
