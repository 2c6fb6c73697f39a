"""Around every fuzz target: nothing on stderr, no file left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# libtiff writes "MODULE: MESSAGE." to the process' stderr by itself, and Pillow does not stop it.
LIBTIFF = re.compile(r"[A-Za-z_][\w.]*: .*\.")


@pytest.fixture(autouse=True)
def _clean(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[None]:
    """Run in an empty folder, with temporary files in another; both are empty afterwards."""
    here, temporary = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("temporary")
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    left = [path for folder in (here, temporary) for path in Path(folder).rglob("*")]
    left = [path for path in left if not path.name.startswith("torchinductor_")]  # PyTorch's own
    assert not left, f"left behind: {left}"
    said = [line for line in capfd.readouterr().err.splitlines() if not LIBTIFF.fullmatch(line)]
    assert not said
