"""docs/guarantees.md names tests that are there, and leaves no contract and no fuzz target out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


@cache
def defined_in(file: str) -> frozenset[str]:
    """The test functions that a file defines; none where there is no file."""
    path = ROOT / file
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ()
    found = (node.name for node in nodes if isinstance(node, ast.FunctionDef))
    return frozenset(name for name in found if name.startswith("test_"))


def missing(page: str) -> list[str]:
    """Tests that a page names and nobody wrote."""
    return [f"{file}::{name}" for file, name in NAMED.findall(page) if name not in defined_in(file)]


def left_out(page: str) -> list[str]:
    """Files of contracts and fuzz targets that a page names no test of."""
    named = {file for file, _ in NAMED.findall(page)}
    files = [path for part in ("contract", "fuzz") for path in (ROOT / "tests" / part).iterdir()]
    paths = {path.relative_to(ROOT).as_posix() for path in files if path.match("test_*.py")}
    return sorted(paths - named)


def rows_without(page: str) -> list[str]:
    """Rows of the page's tables that name no test."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    heads = {row for row in rows if row.endswith("| test |") or set(row) <= set("| :-")}
    return [row for row in rows if row not in heads and not NAMED.search(row)]


def test_every_test_named_is_there() -> None:
    assert len(NAMED.findall(PAGE)) > 50
    assert not missing(PAGE)


def test_every_contract_and_every_fuzz_target_is_named() -> None:
    """If this fails: say in docs/guarantees.md what the new file promises."""
    assert not left_out(PAGE)


def test_every_promise_names_its_test() -> None:
    assert not rows_without(PAGE)


def test_the_checks_bite() -> None:
    name = "tests/contract/test_calls.py::test_beams_in_many_threads"
    assert missing(PAGE.replace(name, name + "_")) == [name + "_"] * PAGE.count(name)
    assert missing(PAGE.replace("test_at_most.py", "test_at_least.py"))
    assert left_out(PAGE.replace("test_wrapped.py", "test_calls.py")) == [
        "tests/contract/test_wrapped.py"
    ]
    assert rows_without(PAGE + "\n| Everything works | trust us |\n")
