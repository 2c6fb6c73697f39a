"""The figure of fusion."""

from __future__ import annotations

from lab.studies.fusion import summary
from toys.figures import board_of, check_readable


def test_the_figure_can_be_read() -> None:
    check_readable(summary.figure(board_of("lab/studies/fusion/suite.json")[0]))
