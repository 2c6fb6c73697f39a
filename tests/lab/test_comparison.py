"""Every method of the registry in one suite: its rows, its page, its times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lab.benchmarks import whole_pass
from lab.report import beside
from lab.report.board import Board
from lab.run import CEILINGS
from lab.studies.methods import page as comparison
from tokensieve.errors import InputError
from tokensieve.evaluate import run
from tokensieve.evaluate.config import Suite, Variant, load_suite
from tokensieve.evaluate.subject import Subject
from tokensieve.methods.registry import method_class, method_names
from tokensieve.types import Site
from toys.eval_tiny import tiny_subject

ROOT = Path(__file__).parents[2]


def tiny_suite(folder: Path) -> Path:
    """A suite of three methods, one of them told of attention."""
    file = folder / "suite.json"
    file.write_text(json.dumps({
        "suite": "tiny", "kinds": ["plain", "mixed"], "topics": ["text", "place"],
        "keeps": [0.2, 0.6], "pictures": 3, "split": "val", "batch": 2,
        "variants": [
            {"name": "full", "method": "full", "keeps": [1.0]},
            {"name": "selector", "method": "stride"},
            {"name": "stride-renumbered", "method": "stride", "positions": "renumber"},
            {"name": "fastervlm", "method": "fastervlm"},
            {"name": "random", "method": "random", "per_seed": {"seed": [0, 1]}},
            {"name": "oracle-text", "method": "oracle-text", "kinds": ["plain"]},
        ],
    }))  # fmt: skip
    return file


def filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Suite]:
    """The tiny suite with its records in `folder`/results."""
    subject = tiny_subject()
    subject.beside = CEILINGS
    monkeypatch.setattr(run, "load_subject", lambda name, beside: subject)
    file = tiny_suite(folder)
    suite = load_suite(file)
    run.run(suite, folder / "results" / "tiny")
    return file, suite


def test_the_registry_fills_a_suite() -> None:
    """A new method gets its rows by itself; what needs weights does not."""
    names = [
        variant.name for variant in load_suite(ROOT / "lab/studies/methods/suite.json").variants
    ]
    assert len(names) == len(set(names))
    for name in method_names():
        cls = method_class(name)
        if name in ("full", "none", "selector") or cls.trained:
            continue
        assert name in names
        assert (f"{name}-renumbered" in names) == (cls.site is not Site.LLM)
    seeded = next(v for v in load_suite(ROOT / "lab/studies/methods/suite.json").variants
                  if v.name == "random")  # fmt: skip
    assert [options for _, options in seeded.seeds()] == [{"seed": i} for i in range(3)]


def test_page_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, suite = filled(tmp_path, monkeypatch)
    root = str(tmp_path)
    comparison.main([str(file), "--results", f"{root}/results", "--root", root])
    page = (tmp_path / "docs/results/comparison.md").read_text()
    for name in ("selector", "fastervlm", "random", "oracle-text"):
        assert f"| {name} | before the LLM |" in page
    assert "| stride-renumbered |" not in page
    assert (tmp_path / "docs/figures/comparison.png").stat().st_size > 1000
    board = Board.of(tmp_path / "results" / "tiny")
    rows = beside.scores(board, suite, "plain", "text")
    best = max(float(row[2].strip("*")) for row in rows[1:] if row[0] != "oracle-text")
    assert all((cell := row[2]).startswith("**") == (float(cell.strip("*")) == best)
               for row in rows[1:] if row[0] != "oracle-text")  # fmt: skip
    leaders = beside.leaders(board, suite)
    assert len(leaders) == 1 + len(comparison.panels(board, suite))
    assert all(
        "oracle" not in cell and "selector" not in cell for row in leaders[1:] for cell in row
    )


@pytest.mark.slow
def test_a_late_cut_is_no_rival_of_an_early_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that leaves more tokens to a layer than the share says does not compete."""
    _, suite = filled(tmp_path, monkeypatch)
    board = Board.of(tmp_path / "results" / "tiny")
    before = beside.leaders(board, suite)
    for record in board.records:
        if record["config"]["variant"] != "selector":
            for row in record["rows"]:
                row["layer_tokens"] = row["visual_tokens"]
    after = beside.leaders(Board(board.records), suite)
    assert "fastervlm" in str(before) or "random" in str(before)
    assert after[1][1:] == ["not run", "not run"]


def test_a_keep_out_of_reach_has_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers that halve leave a quarter at the least: .05 is not run, .6 is."""
    subject = tiny_subject()
    monkeypatch.setattr(run, "load_subject", lambda name, beside: subject)
    variants = (Variant("tome", "tome"), Variant("stride", "stride"))
    suite = Suite("s", variants, kinds=("scene",), keeps=(0.05, 0.6), pictures=2, split="val")
    run.run(suite, tmp_path)
    kept = {
        name: [
            row["keep"]
            for row in json.loads((tmp_path / f"main--scene--{name}--0.json").read_text())["rows"]
        ]
        for name in ("tome", "stride")
    }
    assert kept == {"tome": [0.6], "stride": [0.05, 0.6]}


def test_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected records in .* Run it|is made by"):
        comparison.main([str(tiny_suite(tmp_path)), "--results", str(tmp_path / "none")])


@pytest.mark.slow
def test_times_of_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One record; the share of full is 1 at keep 1, by definition; a page shows it."""
    subject: Subject = tiny_subject()
    monkeypatch.setattr(whole_pass, "load_subject", lambda name: subject)
    out = tmp_path / "results" / "prefill"
    whole_pass.main(["--methods", "stride,fastervlm", "--pictures", "1", "--rounds", "1",
                  "--out", str(out)])  # fmt: skip
    record = json.loads((out / "nano--fastervlm.json").read_text())
    shares = {row["keep"]: row["whole"] for row in record["rows"]}
    assert shares[1.0] == 1
    assert set(shares) == set(whole_pass.KEEPS)
    file, _ = filled(tmp_path, monkeypatch)
    comparison.main([str(file), "--results", str(tmp_path / "results"), "--root", str(tmp_path)])
    page = (tmp_path / "docs/results/comparison.md").read_text()
    assert "## Time" in page
    assert "| fastervlm | " in page.split("## Time")[1]
