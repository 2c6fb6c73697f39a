"""The figure of the comparison."""

from __future__ import annotations

from lab.report import glance, rivals
from toys.figures import ROOT, board_of, check_readable


def test_the_figure_can_be_read() -> None:
    board, suite = board_of("lab/studies/methods/suite.json")
    check_readable(glance.figure(board, suite, rivals.times_of(ROOT / "results/prefill")))
