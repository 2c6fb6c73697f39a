"""Which of the Trainer's checkpoints are whole and belong to this training.

The Trainer writes a checkpoint file by file. It counts once `whole.json` is in it, written last and
in one go; what a kill left of others is removed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokensieve.errors import ConfigError
from tokensieve.fields import check_number
from tokensieve.nn.pretrained import read_json, write_json
from tokensieve.train.checkpoint import PREFIX, difference, plain

MARK = "whole.json"


def mark_whole(out: Path, step: int, record: dict[str, Any]) -> None:
    """Mark the checkpoint of `step`, and remove the others."""
    folder = out / f"{PREFIX}{step}"
    write_json(folder / MARK, {**record, "step": step})
    for old in _folders(out):
        if old != folder:
            _remove(old)


def find_checkpoint(out: Path, record: dict[str, Any], *, clean: bool) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step; with `clean` parts of others are removed.

    Raises `ConfigError` if it belongs to another recipe, seed, model or data.
    """
    whole = [folder for folder in _folders(out) if (folder / MARK).is_file()]
    if clean:
        for folder in _folders(out):
            if folder not in whole:
                shutil.rmtree(folder)
    if not whole:
        return None
    newest = max(whole, key=lambda folder: int(folder.name.removeprefix(PREFIX)))
    stored = read_json(newest / MARK)
    step = check_number("step", stored.pop("step", None), low=0)
    if (different := difference(stored, plain(record))) is not None:
        raise ConfigError(
            f"Expected the checkpoint in {newest} to be of this recipe, seed, model and data. It "
            f"differs in {different}. Choose another --out, or delete it."
        )
    return newest, step


def _folders(out: Path) -> list[Path]:
    found = out.glob(f"{PREFIX}*")
    return [f for f in found if f.is_dir() and f.name.removeprefix(PREFIX).isdecimal()]


def _remove(folder: Path) -> None:
    """Unmark first: a removal that is cut short must not leave what looks whole."""
    (folder / MARK).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
