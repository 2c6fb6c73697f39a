"""The notebooks run, from a clone and offline; what is stored of them is small and clean."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]
MOST_BYTES = 400_000


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """notebooks/execute.py, in whose process the sources of this clone are found first."""
    pytest.importorskip("nbclient", reason="the extra test")
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.delitem(sys.modules, "execute", raising=False)
    import execute

    return execute


def outputs(notebook: Any) -> list[Any]:
    """Of every cell that is run."""
    return [one for cell in notebook["cells"] for one in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_and_shows_the_same_kinds_of_things(
    path: Path, execute: ModuleType
) -> None:
    made, stored = execute.executed(path), json.loads(path.read_text("utf-8"))
    for one, other in zip(outputs(made), outputs(stored), strict=True):
        assert one["output_type"] == other["output_type"]
        assert set(one.get("data", {})) == set(other.get("data", {}))


def test_a_cell_that_fails_fails_the_run(execute: ModuleType, tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError
    from nbformat import v4, write

    broken = v4.new_notebook(cells=[v4.new_code_cell("import tokensieve\nraise KeyError(3)")])
    write(broken, tmp_path / "broken.ipynb")
    with pytest.raises(CellExecutionError, match="KeyError"):
        execute.executed(tmp_path / "broken.ipynb")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_stored_is_small_clean_and_whole(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"(/home/|/root/|/work/|/tmp/|site-packages)", text)
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(one.get("name") != "stderr" for one in outputs(notebook))
    for target in re.findall(r"\]\(([^)#]+?)\)", "".join(prose(notebook))):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def prose(notebook: Any) -> list[str]:
    """The text of every cell that is read, not run."""
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]


def test_the_guide_lists_every_notebook() -> None:
    page = (ROOT / "docs/guides/notebooks.md").read_text("utf-8")
    assert sorted(re.findall(r"notebooks/(\w+\.ipynb)\)", page)) == NAMES
