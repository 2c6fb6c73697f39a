"""Generated pages: the message first, one small table, long ones folded; none older than its
records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.benchmarks import selection_page
from lab.report.board import Board
from lab.report.page import document, fold
from lab.studies.ablations import page as ablations
from lab.studies.adaptive import page as adaptive
from lab.studies.conditional import page as conditional
from lab.studies.fusion import page as fusion
from lab.studies.methods import page as methods
from lab.studies.nano import page as nano
from lab.studies.nano.figure import times_of
from lab.studies.stability import page as stability
from lab.studies.worlds import page as worlds
from tokensieve.evaluate.config import load_suite
from tokensieve.evaluate.records import read_all

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
OTHERS = ("versions.md",)  # written by .ci/versions.py
LONGEST = 16  # rows of a table that stands open


def faults(page: str) -> list[str]:
    """What a reader in a hurry would stumble over."""
    lines, said = page.split("\n\n"), []
    if not re.fullmatch(r"# [^\n]+", lines[0]):
        said.append("no title first")
    if not re.fullmatch(r"\*\*.+[.]\*\*", lines[1], re.DOTALL):
        said.append("no message under the title")
    opened = re.sub(r"<details markdown=\"1\">.*?</details>", "", page, flags=re.DOTALL)
    for rows in re.findall(r"(?:^\|.*\n?)+", opened, re.MULTILINE):
        if rows.count("\n") - 2 > LONGEST:
            said.append(f"an open table of {rows.count(chr(10)) - 2} rows")
    if not re.search(r"\*Made by `[^`]+`.*; do not edit\.[^\n]*\*\n$", page):
        said.append("no command at its end")
    return said


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.md")), ids=lambda path: path.name)
def test_a_page_can_be_read_in_a_hurry(path: Path) -> None:
    if path.name not in OTHERS:
        assert faults(path.read_text("utf-8")) == []


def test_the_check_bites() -> None:
    long = "\n".join(["| a |", "| :-- |", *["| 1 |"] * 40])
    assert faults(document("T", "It leads.", [fold("All", long)], "`make x`")) == []
    assert faults(document("T", "It leads.", [long], "`make x`")) == ["an open table of 40 rows"]
    assert faults("# T\n\nSome words.\n\nMore.\n") == ["no message under the title",
                                                       "no command at its end"]  # fmt: skip


def _suite_page(module, name: str, study: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        module.main([f"lab/studies/{study}/suite.json", "--results", "results", "--root",
                     str(root)])  # fmt: skip

    write.__name__ = name
    return write


def _ablations(root: Path) -> None:
    file = Path("lab/studies/ablations/suite.json")
    ablations.write_report(json.loads(file.read_text()), file, Path("results/ablations"),
                           root / "docs")  # fmt: skip


def _written(name: str, text: Callable[[], str]) -> Callable[[Path], object]:
    return lambda root: (root / "docs/results" / name).write_text(text(), "utf-8")


WRITERS: dict[str, Callable[[Path], object]] = {
    "worlds.md": _written("worlds.md", lambda: worlds.page(list(read_all(Path("results/worlds"))))),
    "selection.md": _written("selection.md",
                             lambda: selection_page.page(Path("results/selection"))),
    "adaptive.md": lambda root: adaptive.write_page(
        Path("results/adaptive"), root, Path("lab/studies/adaptive/suite.json")
    ),
    "stability.md": lambda root: stability.write_page(Path("results/stability"), root),
    "ablations.md": _ablations,
    "conditional.md": _suite_page(conditional, "conditional", "conditional"),
    "fusion.md": _suite_page(fusion, "fusion", "fusion"),
    "comparison.md": _suite_page(methods, "methods", "methods"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_page_is_what_its_command_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails: run the command at the page's end."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "docs/results").mkdir(parents=True)
    WRITERS[name](tmp_path)
    written = (tmp_path / "docs/results" / name).read_text("utf-8")
    assert written == (RESULTS / name).read_text("utf-8")


@pytest.mark.slow
def test_the_readmes_table_is_of_the_records() -> None:
    """If this fails: python -m lab.studies.nano.page"""
    suite = load_suite(ROOT / "lab/studies/nano/suite.json")
    board = Board.of(ROOT / "results/nano")
    block = nano.readme_block(board, suite, times_of(ROOT / "results"))
    assert f"<!-- results:begin -->\n{block}\n<!-- results:end -->" in (
        ROOT / "README.md"
    ).read_text("utf-8")
