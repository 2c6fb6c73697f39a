"""The figure of nano's results and the README's table: of the records."""

from __future__ import annotations

import pytest

from lab.studies.nano import figure as nano
from lab.studies.nano.page import OURS, PEERS, best_peer, present, readme_block
from toys.figures import ROOT, board_of, check_readable


def test_the_figure_can_be_read() -> None:
    board, suite = board_of("lab/studies/nano/suite.json")
    peers, times = present(suite, (OURS, *PEERS)), nano.times_of(ROOT / "results")
    check_readable(nano.figure(board, suite, peers, best_peer(board, suite), times))


@pytest.mark.slow
def test_the_readmes_table_is_of_the_records() -> None:
    """If this fails: python -m lab.studies.nano.page"""
    board, suite = board_of("lab/studies/nano/suite.json")
    block = readme_block(board, suite, nano.times_of(ROOT / "results"))
    assert f"<!-- results:begin -->\n{block}\n<!-- results:end -->" in (
        ROOT / "README.md"
    ).read_text("utf-8")
