"""A study is a folder: whole in itself, listed in lab/README.md, missed by nothing if deleted."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "lab/studies").glob("*/__init__.py"))
STUDIES = [folder.name for folder in FOLDERS]
MAKE = shutil.which("make")


def named(text: str) -> Iterator[str]:
    """Studies that a module's text names: in an import, as a module to run, or as a path.

    Prose in docstrings and in messages may name them.
    """
    tree = ast.parse(text)
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value if id(node) not in prose else ""
            found = [text] if " " not in text else []
        for one in found:
            yield from re.findall(r"\blab[./]studies[./]([a-z]\w*)", one)


def rows() -> dict[str, list[str]]:
    """The table of studies in lab/README.md: cells by name."""
    table = [
        [cell.strip() for cell in line.strip("|\n ").split("|")]
        for line in (ROOT / "lab/README.md").read_text().partition("## Studies")[2].splitlines()
        if line.startswith("| `")
    ]
    return {name.strip("`"): cells for name, *cells in table}


def test_names_are_seen_and_prose_is_not() -> None:
    for text in (
        "from lab.studies.some.arms import Study", "from lab.studies import some",
        "import lab.studies.some", "x = 'lab/studies/some/arms.json'", "x = 'lab.studies.some'",
    ):  # fmt: skip
        assert list(named(text)) == ["some"], text
    assert not list(named('"""As lab.studies.some does."""\nraise X("Run lab.studies.some.")'))


def test_nothing_outside_a_study_knows_it() -> None:
    for folder in ("src", "lab", "tests", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            own = {parts[2]} if parts[:2] == ("lab", "studies") else set()
            other = set(named(path.read_text("utf-8"))) - own
            if parts[:2] == ("tests", "lab"):
                assert len(other) <= 1, f"{path}: one study a test file, to fall with it: {other}"
            else:
                assert not other, f"{path} knows of {other}: what both need goes elsewhere"


@pytest.mark.parametrize("folder", FOLDERS, ids=STUDIES)
def test_a_study_is_whole(folder: Path) -> None:
    measures = [p for p in folder.glob("*.py") if "def measure" in p.read_text("utf-8")]
    assert measures or any(folder.glob("suite.json")) or any(folder.glob("*.sh"))
    made = (folder / "study.mk").read_text("utf-8")
    assert re.search(rf"lab[./]studies[./]{folder.name}\b", made), "its targets run something else"
    question, commands, page, records, _ = rows()[folder.name]
    assert question.endswith("?")
    for target in commands.strip("`").split()[1:]:
        assert re.search(rf"^{target}:.*## ", made, re.MULTILINE), f"make {target} is not its own"
    path = re.search(r"\((.*)\)", page)
    assert path is not None
    assert (ROOT / "lab" / path[1]).is_file()
    for name in re.findall(r"`(.*?)`", records):
        assert any((ROOT / "results" / name).glob("*.json")), f"no records in results/{name}"
    if (suite := folder / "suite.json").exists():
        assert json.loads(suite.read_text())["suite"] == folder.name


@pytest.mark.parametrize("name", STUDIES)
def test_the_hours_in_the_readme_are_the_records(name: str) -> None:
    *_, records, hours = rows()[name]
    spent = sum(
        json.loads(path.read_text()).get("seconds", 0.0)
        for folder in re.findall(r"`(.*?)`", records)
        for path in (ROOT / "results" / folder).glob("*.json")
    )
    assert hours == (f"{spent / 3600:.1f}" if spent else "not kept")


def test_the_readme_lists_every_study_and_no_other() -> None:
    assert list(rows()) == STUDIES


@pytest.mark.skipif(MAKE is None, reason="no make")
def test_make_does_not_miss_a_study_that_is_gone(tmp_path: Path) -> None:
    assert MAKE is not None
    shutil.copy(ROOT / "Makefile", tmp_path)
    for file in (ROOT / "lab").rglob("*.mk"):
        (tmp_path / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / file.relative_to(ROOT))
    command = [MAKE, "--no-print-directory", "help"]
    whole = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    gone = FOLDERS[0].relative_to(ROOT)
    targets = re.findall(r"^([a-z-]+):", (ROOT / gone / "study.mk").read_text(), re.MULTILINE)
    shutil.rmtree(tmp_path / gone)
    less = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    named_in = [set(re.findall(r"  make (\S+)", told.stdout)) for told in (whole, less)]
    assert named_in[0] - named_in[1] == set(targets)
    assert targets
