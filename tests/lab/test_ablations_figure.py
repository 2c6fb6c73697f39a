"""Both figures of the ablations."""

from __future__ import annotations

import json

from lab.studies.ablations import page
from tokensieve.evaluate import records
from toys.figures import ROOT, check_readable


def test_both_figures_can_be_read() -> None:
    spec = json.loads((ROOT / "lab/studies/ablations/suite.json").read_text())
    found = {path.stem: records.read(path) for path in (ROOT / "results/ablations").glob("*.json")}
    check_readable(page.axes_plot(spec, found))
    check_readable(page.curves(spec, found))
