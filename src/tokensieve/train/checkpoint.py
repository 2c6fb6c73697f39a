"""Checkpoints without pickle: tensors in safetensors, the rest in JSON."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import ConfigError
from tokensieve.nn.pretrained import (
    load_weights,
    read_json,
    read_weights,
    write_json,
    write_weights,
)


def save_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Write model, optimiser and `record` (with its "step"); the old one is replaced at once."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_weights(part / "model.safetensors", dict(model.state_dict()))
    moments = {
        f"{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    write_weights(part / "optimiser.safetensors", moments)
    write_json(part / "state.json", record)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def load_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, record: dict[str, Any]
) -> int:
    """Steps already done: 0 without a checkpoint, else `model` and `optimiser` are restored.

    Raises `ConfigError` if the checkpoint belongs to another recipe, seed or data.
    """
    if not (folder / "state.json").is_file():
        return 0
    stored = read_json(folder / "state.json")
    step = int(stored.pop("step"))
    if stored != _plain(record):
        raise ConfigError(
            f"Expected the checkpoint in {folder} to be of this recipe, seed and data. It is of "
            "another. Choose another --out or delete it."
        )
    load_weights(model, folder / "model.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in read_weights(folder / "optimiser.safetensors").items():
        index, _, field = name.partition(".")
        state.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
