"""Generated pages: the message first, one small table, long ones folded; none older than its
records."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lab.benchmarks import selection_page
from lab.report import gallery
from lab.report.page import document, fold
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


def _module(study: str, name: str = "page") -> Any:
    return import_module(f"lab.studies.{study}.{name}")


def _suite(study: str) -> Path:
    return Path("lab/studies") / study / "suite.json"


def _by_suite(study: str, root: Path) -> None:
    file = str(_suite(study))
    _module(study).main([file, "--results", "results", "--root", str(root)])


def _nano(study: str, root: Path) -> None:
    """It also writes beside its records and into the README: both are held here, in copies."""
    shutil.copytree("results", root / "results")
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    readme = Path("README.md").read_text("utf-8")
    head, tail = readme.split(begin)[0], readme.split(end)[1]
    (root / "README.md").write_text(f"{head}{begin}\n{end}{tail}", "utf-8")
    scores = root / "results" / "nano" / "scores.csv"
    scores.unlink()
    _module(study).main([str(_suite(study)), "--results", str(root / "results"),
                         "--root", str(root)])  # fmt: skip
    assert (root / "README.md").read_text("utf-8") == readme
    assert scores.read_bytes() == Path("results/nano/scores.csv").read_bytes()


def _ablations(study: str, root: Path) -> None:
    spec = json.loads(_suite(study).read_text())
    _module(study).write_report(spec, _suite(study), Path("results/ablations"), root / "docs")


def _worlds(study: str, root: Path) -> None:
    text = _module(study).page(list(read_all(Path("results/worlds"))))
    (root / "docs/results/worlds.md").write_text(text, "utf-8")


def _selection(study: str, root: Path) -> None:
    text = selection_page.page(Path("results/selection"))
    (root / "docs/results/selection.md").write_text(text, "utf-8")


def _adaptive(study: str, root: Path) -> None:
    _module(study).write_page(Path("results/adaptive"), root, _suite(study))


def _stability(study: str, root: Path) -> None:
    _module(study).write_page(Path("results/stability"), root)


def _mirror(study: str, root: Path) -> None:
    _module(study).write_page(Path("results/mirror"), root)


def _payback(study: str, root: Path) -> None:
    suite = load_suite(_suite(study))
    _module(study).write_page(suite, Path("results/payback-time"), root)


def _coverage(study: str, root: Path) -> None:
    record = json.loads(Path("results/coverage/nano.json").read_text("utf-8"))
    text = _module(study, "__main__").page(record)
    (root / "docs/results/coverage.md").write_text(text, "utf-8")


def _cascade(study: str, root: Path) -> None:
    record = json.loads(Path("results/cascade/nano.json").read_text("utf-8"))
    text = _module(study, "__main__").page(record)
    (root / "docs/results/cascade.md").write_text(text, "utf-8")


def _steady(study: str, root: Path) -> None:
    record = json.loads(Path("results/steady/nano.json").read_text("utf-8"))
    text = _module(study, "__main__").page(record)
    (root / "docs/results/steady.md").write_text(text, "utf-8")


def _gallery(study: str, root: Path) -> None:
    gallery.main(root)


Writer = tuple[str, Callable[[str, Path], None]]
EVERY: dict[str, Writer] = {  # by page: its study, "" for none, and what writes it
    "worlds.md": ("worlds", _worlds),
    "selection.md": ("", _selection),
    "adaptive.md": ("adaptive", _adaptive),
    "stability.md": ("stability", _stability),
    "mirror.md": ("mirror", _mirror),
    "payback.md": ("payback", _payback),
    "ablations.md": ("ablations", _ablations),
    "conditional.md": ("conditional", _by_suite),
    "fusion.md": ("fusion", _by_suite),
    "comparison.md": ("methods", _by_suite),
    "nano.md": ("nano", _nano),
    "coverage.md": ("coverage", _coverage),
    "cascade.md": ("cascade", _cascade),
    "steady.md": ("steady", _steady),
    "gallery.md": ("", _gallery),
}
WRITERS = {  # a study that was deleted is not missed
    page: one for page, one in EVERY.items() if (ROOT / "lab/studies" / one[0]).is_dir()
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_page_is_what_its_command_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails: run the command at the page's end."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "docs/results").mkdir(parents=True)
    study, write = WRITERS[name]
    write(study, tmp_path)
    written = (tmp_path / "docs/results" / name).read_text("utf-8")
    assert written == (RESULTS / name).read_text("utf-8")
