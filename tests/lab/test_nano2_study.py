"""Nano 2's study: its suites can be run, and records become its page and figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lab.report import glance
from lab.report.board import Board
from lab.report.quality import four_lines
from lab.run import CEILINGS, WORLDS
from lab.studies.nano2 import contest, page
from lab.world import SORTS
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.evaluate import records
from tokensieve.evaluate.config import Suite, load_suite
from tokensieve.evaluate.stats import pack_hits
from tokensieve.methods.registry import method_class, method_names
from tokensieve.types import Site
from toys.figures import ROOT, check_readable

FOLDER = ROOT / "lab/studies/nano2"
RIGHT = {"full": 0.95, "no-image": 0.02, "oracle-text": 0.9}  # the others by keep and name


def write_records(suite: Suite, folder: Path, pictures: int = 40) -> None:
    """Records as the suite's runs would leave them, of invented hits."""
    rng = np.random.default_rng(0)
    for job in suite.jobs():
        topics = {"scene": ["scene"], "mixed": ["text", "panel"], "blind": ["blind"]}
        rows = []
        for topic in topics.get(job.kind, ["text"]):
            for keep in job.variant.keeps or suite.keeps:
                start = RIGHT.get(job.variant.name, 0.9 if "selector" in job.variant.name else 0.3)
                share = start * (keep**0.3 if job.variant.name not in RIGHT else 1)
                hits = rng.random(pictures) < share
                half = [int(hits[::2].sum()), pictures // 2]
                groups = dict.fromkeys(("seen font", "unseen font", "light", "dark"), half)
                numbers = dict.fromkeys(("kept_tokens", "llm_prefill_flops", "select_ms"), 1.0)
                rows.append({
                    "topic": topic, "keep": keep, "n": pictures, "right": int(hits.sum()),
                    "exact_match": float(hits.mean()), "low": 0.0, "high": 1.0, "groups": groups,
                    "visual_tokens": 576.0, "layer_tokens": 576 * keep, "hits": pack_hits(hits),
                    **numbers,
                })  # fmt: skip
        config = {"model": job.model, "variant": job.variant.name, "kind": job.kind,
                  "seed": job.seed, "pictures": pictures, "method": job.variant.method}  # fmt: skip
        records.write(folder / job.file_name, {"form": "scores", "config": config, "rows": rows})


def test_without_records_the_page_says_what_to_run(tmp_path: Path) -> None:
    page.main(
        ["--results", str(tmp_path), "--root", str(tmp_path), "--suite", str(FOLDER / "suite.json")]
    )
    text = (tmp_path / "docs/results/nano2.md").read_text()
    assert "**Not run yet" in text
    assert "python -m lab.run lab/studies/nano2/suite.json" in text
    assert not (tmp_path / "docs/figures").exists()


def test_records_become_a_page_with_figures_that_can_be_read(tmp_path: Path) -> None:
    results = tmp_path / "results"
    raw = json.loads((FOLDER / "suite.json").read_text())  # a few kinds, all that differ
    raw["kinds"] = ["lines", "unseen", "blind", "scene", "mixed"]
    raw["variants"][-1]["kinds"] = ["lines", "mixed"]
    (tmp_path / "suite.json").write_text(json.dumps(raw))
    suite = load_suite(tmp_path / "suite.json")
    write_records(suite, results / suite.suite)
    times = {"keep": 1.0, "whole": 1.0}, {"keep": 0.2, "whole": 0.6}, {"keep": 0.1, "whole": 0.5}
    for method in ("selector", "random"):
        told = {"form": "prefill", "config": {"model": "nano2", "method": method}}
        records.write(results / "prefill" / f"nano2--{method}.json", told | {"rows": list(times)})
    page.main(
        [
            "--results",
            str(results),
            "--root",
            str(tmp_path),
            "--suite",
            str(tmp_path / "suite.json"),
        ]
    )
    text = (tmp_path / "docs/results/nano2.md").read_text()
    for told in ("(../figures/nano2-time.png)", "| **selector**, trained |", "mixed: panel",
                 "| full | ", "(nano2-methods.md)", "All numbers here are of nano 2",
                 "| right answers, % | seen font | unseen font | light | dark |"):  # fmt: skip
        assert told in text, told
    assert all((tmp_path / "docs/figures" / name).stat().st_size > 1000 for name in page.FIGURES)
    board = Board.of(results / suite.suite)
    check_readable(figure := four_lines(board, suite))
    assert len(figure.axes) == 6  # mixed has two topics, and no mean of them
    assert {len(ax.lines) for ax in figure.axes} == {4}


def test_every_method_becomes_a_page(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("methods", "first"):
        raw = json.loads((FOLDER / f"{name}.json").read_text()) | {"kinds": ["lines"]}
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
        suite = load_suite(tmp_path / f"{name}.json")
        if name == "first":
            told = [
                str(tmp_path / "methods.json"),
                "--results",
                str(results),
                "--root",
                str(tmp_path),
            ]
            contest.main(told)
            text = (tmp_path / "docs/results/nano2-methods.md").read_text()
            assert "## The question before" not in text
        write_records(suite, results / suite.suite)
    contest.main(told)
    text = (tmp_path / "docs/results/nano2-methods.md").read_text()
    for said in ("**The selector against the best", "| `selector` | before the LLM |",
                 "## The question before the picture", "| lines (text) |",
                 "All tokens 9"):  # fmt: skip
        assert said in text, said
    board = Board.of(results / "nano2-methods")
    check_readable(glance.figure(board, load_suite(tmp_path / "methods.json"), {}))


def test_the_suites_can_be_run() -> None:
    for name in ("suite", "methods", "first"):
        suite = load_suite(FOLDER / f"{name}.json")
        assert {variant.method for variant in suite.variants} <= {*method_names(), *CEILINGS}
        WORLDS[suite.world].check(suite.kinds)
        assert suite.split == "test"
    whole = load_suite(FOLDER / "suite.json")
    assert whole.pictures >= 1000
    assert set(whole.kinds) == set(SORTS)


def test_a_registry_row_may_be_of_some_sites_only(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    raw = {"suite": "s", "variants": [], "registry": {"sites": ["pixels", "features"]}}
    file.write_text(json.dumps(raw))
    names = {variant.method for variant in load_suite(file).variants}
    assert names == {
        name
        for name in method_names()
        if method_class(name).site in (Site.PIXELS, Site.FEATURES)
        and not method_class(name).trained
    }
    file.write_text(json.dumps(raw | {"registry": {"sites": "features"}}))
    with pytest.raises(ConfigError, match="Expected `sites` of `registry` as a list"):
        load_suite(file)
    file.write_text(json.dumps(raw | {"registry": {"sites": ["feature"]}}))
    with pytest.raises(UnknownNameError, match="site 'feature'"):
        load_suite(file)
