"""The figure of adaptive counts."""

from __future__ import annotations

from lab.studies.adaptive import page
from tokensieve.evaluate import records
from toys.figures import ROOT, check_readable


def test_the_figure_can_be_read() -> None:
    check_readable(page.draw(list(records.read_all(ROOT / "results/adaptive"))))
