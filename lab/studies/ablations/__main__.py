"""Measure what `lab.trained.train` trained, and write table and plots.

`python -m lab.studies.ablations lab/studies/ablations/suite.json`; a record of the same weights is
never made twice.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lab import command
from lab.studies.ablations.page import write_report
from lab.trained.measure import config_of, encode_pictures, measure
from lab.trained.spec import trainings
from tokensieve.evaluate import records
from tokensieve.evaluate.subject import load_subject
from tokensieve.nn.pretrained import read_json


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure what is missing, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path, help="lab/studies/ablations/suite.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--root", type=Path, default=Path(), help="where docs/ lies")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    options = command.parse(parser, arguments)
    spec = read_json(options.spec)
    folder = options.results / spec["suite"]
    if not options.report_only:
        run(spec, options.runs, folder)
    write_report(spec, options.spec, folder, options.root / "docs")


def run(spec: dict[str, object], runs: Path, folder: Path) -> None:
    """Records of every finished training that has none."""
    subject, pictures = None, None
    for one in trainings(spec):
        trained, path = runs / one.folder, folder / f"{one.folder}.json"
        if not (trained / "selector" / "config.json").exists():
            continue
        config = config_of(spec, one, trained)
        if records.is_done(path, config):
            continue
        if subject is None or pictures is None:
            subject = load_subject("nano")
            pictures = encode_pictures(subject, spec)
        started = time.perf_counter()
        found = measure(subject, pictures, trained, config["keeps"])
        records.write(path, {
            "form": "ablation", "identity": records.identity(config), "config": config,
            **records.provenance(), "seconds": round(time.perf_counter() - started, 1), **found,
        })  # fmt: skip
        print(path.name, found["state"], found["auc"], flush=True)


if __name__ == "__main__":
    command.run(main)
