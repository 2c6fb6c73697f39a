"""Weights shipped with the package, and where they lie."""

from __future__ import annotations

from pathlib import Path

from tokensieve.errors import UnknownNameError

_HERE = Path(__file__).parent


def asset_path(name: str) -> Path:
    """Directory of the shipped asset `name`. Raises `UnknownNameError` if there is none."""
    known = [p.name for p in _HERE.iterdir() if p.is_dir() and not p.name.startswith("_")]
    if name not in known:
        raise UnknownNameError.of("asset", name, known)
    return _HERE / name
