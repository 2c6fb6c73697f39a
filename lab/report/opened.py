"""The records a page is made from, as a command line names them."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.report.board import Board
from tokensieve.errors import InputError
from tokensieve.evaluate.config import Suite, load_suite


def open_board(
    arguments: list[str] | None, about: str, default: str
) -> tuple[Suite, Board, argparse.Namespace]:
    """The suite a command line names, its records, and the options `suite`, `results`, `root`.

    Raises `InputError` where nothing has been recorded.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("suite", nargs="?", default=default, type=Path)
    parser.add_argument("--results", default="results", type=Path, help="folder of records")
    parser.add_argument("--root", default=".", type=Path, help="where README.md and docs/ lie")
    options = parser.parse_args(arguments)
    suite = load_suite(options.suite)
    board = Board.of(folder := options.results / suite.suite)
    if not board.records:
        raise InputError(f"Expected records in {folder}. {how_to_run(options.suite)}")
    return suite, board, options


def how_to_run(suite_file: Path) -> str:
    """The sentence under every table with a row not run."""
    return f"A row not run is made by `python -m lab.run {suite_file}`."
