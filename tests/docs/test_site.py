"""What the site's pages show runs, what they name is there, and what builds them does its part."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "results" not in p.parts]
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ELSEWHERE = {"guides/export.md"}  # test_export_page.py: it needs an engine and a file
PATH = re.compile(r"`((?:src|lab|docs|tests|results)/[\w./-]+)`")
WITH_CODE = [p.relative_to(DOCS).as_posix() for p in PAGES if CODE.search(p.read_text("utf-8"))]


@pytest.mark.parametrize("name", [name for name in WITH_CODE if name not in ELSEWHERE])
def test_what_a_page_shows_runs(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Its python blocks, one after another, in an empty folder. What cannot run is ```text."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "page"}
    page = types.ModuleType("page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "page", page)
    for block in CODE.findall((DOCS / name).read_text("utf-8")):
        exec(compile(block, name, "exec"), scope)
    if name == "concepts/calls.md":
        first, second = scope["report"].calls
        assert (first.kept_tokens, first.visual_tokens, second.visual_tokens) == (128, 256, 0)
        assert scope["out"].sequences.shape[1] > scope["ids"].shape[1] > 256


def test_pages_show_code() -> None:
    assert {"index.md", "concepts/calls.md", "guides/evaluate.md"} <= set(WITH_CODE)


def absent(page: str) -> list[str]:
    """Paths that a page names and nobody finds."""
    return [path for path in PATH.findall(page) if not (ROOT / path).exists()]


def test_every_path_of_the_architecture_is_there() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    assert len(PATH.findall(page)) > 40
    assert absent(page) == []
    assert absent(page.replace("methods/fastv.py", "methods/fastvlm.py"))


def test_every_row_of_the_architecture_has_a_path() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "?" in line]
    assert len(rows) > 30
    assert [row for row in rows if not PATH.search(row) and "`lab/studies`" not in row] == []


@pytest.mark.parametrize("part", ["guides", "concepts"])
def test_every_path_of_a_page_is_there(part: str) -> None:
    for page in (DOCS / part).glob("*.md"):
        made_by_the_reader = "src/tokensieve/methods/my_method.py"
        assert set(absent(page.read_text("utf-8"))) <= {made_by_the_reader}, page.name


def module(name: str) -> Any:
    """A file of docs/theme, which is no package."""
    spec = importlib.util.spec_from_file_location(f"theme_{name}", DOCS / "theme" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_links_that_leave_the_docs_go_to_the_repository() -> None:
    site = module("site")
    text = "[a](../../README.md#x) [b](train.md) [c](../../gone.md)\n```\n[d](../../README.md)\n```"
    got, dead = site.with_repository_links(text, DOCS / "guides" / "fuse.md", "https://x/blob/main")
    assert got.startswith("[a](https://x/blob/main/README.md#x) [b](train.md)")
    assert "[d](../../README.md)" in got
    assert dead == ["../../gone.md"]
    assert site.with_repository_links("[a](../../README.md)", DOCS / "guides" / "a.md", None) == (
        "a", []
    )  # fmt: skip


def test_lists_and_tables_need_no_blank_line() -> None:
    site = module("site")
    assert site.with_lists("So:\n- a\n  more\n- b\n\nEnd\n| x |") == (
        "So:\n\n- a\n  more\n- b\n\nEnd\n\n| x |"
    )
    assert site.with_lists("```\nx\n- y\n```") == "```\nx\n- y\n```"


def test_a_star_of_the_nav_stands_for_the_pages_not_named() -> None:
    site = module("site")
    (nav,) = site.spelled_out([{"Decisions": ["adr/README.md", "adr/*.md"]}])
    got = nav["Decisions"]
    assert got[:2] == ["adr/README.md", "adr/0001-methods-know-tensors-families-know-models.md"]
    assert got.count("adr/README.md") == 1


def test_docstrings_become_lists(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "griffe", types.SimpleNamespace(Extension=object))
    shown = module("docstrings").as_markdown
    text = "One line.\n\nkeep: a share\n    or a number.\nseed: of chance.\n\nNote: this is prose."
    assert shown(text, {"keep", "seed"}) == (
        "One line.\n\n- `keep`: a share\n    or a number.\n- `seed`: of chance.\n\n"
        "Note: this is prose."
    )
    assert shown("keep (a share), seed: both.", {"keep", "seed"}) == (
        "- `keep` (a share), `seed`: both."
    )
    source = 'class A:\n    ONE = "one"  # first\n    TWO = "two"\n'
    assert module("docstrings").values(source) == "- `one`: first\n- `two`"
    assert shown("Errors\n├── A", ()) == "```text\nErrors\n├── A\n```"
