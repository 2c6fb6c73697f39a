"""Run the notebooks and store what they print: `python notebooks/execute.py [NAME.ipynb ...]`.

A kernel of this very Python is described for the run alone, so that it need not be installed
anywhere. `pip install tokensieve[test]` brings what is needed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
TIMEOUT_S = 600  # of a cell


@contextmanager
def kernel_of_this_python() -> Iterator[str]:
    """The name of a kernel that is this interpreter, whatever kernels the machine has."""
    from ipykernel.kernelspec import write_kernel_spec

    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(str(Path(folder) / "kernels" / "this-python"))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder, before)))
        try:
            yield "this-python"
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def executed(path: Path) -> NotebookNode:
    """The notebook with what each cell gave. Raises `CellExecutionError` where one fails."""
    notebook = nbformat.read(path, as_version=4)
    with kernel_of_this_python() as kernel:
        client = NotebookClient(
            notebook, timeout=TIMEOUT_S, kernel_name=kernel, record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(path.parent)}},
        )  # fmt: skip
        client.execute()
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Without progress bars and without what names the machine it ran on."""
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for one in cell.outputs:
                if "image/jpeg" in one.get("data", {}):
                    one.data.pop("image/png", None)  # the same picture, three times as large
    return notebook


def main(names: list[str]) -> None:
    """Run the named notebooks, or all, and write each where it lay."""
    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
