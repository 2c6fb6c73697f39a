"""Checkpoints in one file: weights, moments, averages, and in its head the state as JSON.

One file is written beside its place and moved there, so that a checkpoint is whole or absent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokensieve.errors import TrainingError


def save(
    file: Path,
    model: nn.Module,
    averaged: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write everything that the next step depends on."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"averaged.{name}": value for name, value in averaged.items()}
    for number, held in optimiser.state_dict()["state"].items():
        for name, value in held.items():
            tensors[f"optimiser.{number}.{name}"] = torch.as_tensor(value)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    save_file(whole, part, metadata={"state": json.dumps(state)})
    os.replace(part, file)


def load(
    file: Path,
    model: nn.Module,
    averaged: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    begin: dict[str, Any],
) -> dict[str, Any]:
    """Restore what `save` wrote and return its state; `begin` where there is no checkpoint.

    Raises `TrainingError` if the checkpoint was made by another recipe than `begin["recipe"]`.
    """
    if not file.exists():
        return begin
    found, wanted = state_of(file)["recipe"], json.loads(json.dumps(begin["recipe"]))
    if found != wanted:
        other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise TrainingError(
            f"Expected {file} made by this recipe. Got another {', '.join(other)}. "
            "Name another folder, or go back to that recipe."
        )
    tensors = load_file(file)
    model.load_state_dict(part(tensors, "model."))
    averaged.update(part(tensors, "averaged."))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in part(tensors, "optimiser.").items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
    return state_of(file)


def state_of(file: Path) -> dict[str, Any]:
    """The JSON in the head of a checkpoint."""
    with safe_open(file, "pt") as opened:
        state: dict[str, Any] = json.loads(opened.metadata()["state"])
    return state


def part(tensors: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `head`, without it."""
    return {name[len(head) :]: value for name, value in tensors.items() if name.startswith(head)}
