"""A training that is cut off and goes on: one file holds weights, moments, averages, and in its
head the state as JSON.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lab.nano.muon import Muon
from lab.nano.state import part, restore, tensors_of
from tokensieve.errors import TrainingError
from tokensieve.files import make_folder, staged

SAVE_EVERY_S = 120.0


class Training:
    """A model in training with the running average of its weights.

    `state` is what the next step depends on besides: "step", "recipe" and what the caller adds, at
    first `begin`. A checkpoint in `file` goes on. Raises `TrainingError` if it was made by another
    recipe than `begin["recipe"]`.
    """

    def __init__(
        self, file: Path, model: nn.Module, optimiser: Muon, begin: dict[str, Any]
    ) -> None:
        self.file, self.model, self.optimiser = file, model, optimiser
        self.averaged = {name: value.clone() for name, value in model.state_dict().items()}
        self.state, self.saved = begin, time.monotonic()
        if not file.exists():
            return
        check_recipe(file, begin["recipe"])
        tensors = load_file(file)
        restore(tensors, model, optimiser)
        self.averaged.update(part(tensors, "averaged."))
        self.state = state_of(file)

    @property
    def step(self) -> int:
        """Steps made so far."""
        return int(self.state["step"])

    def descend(self, loss: Tensor, rate: float, average: float) -> None:
        """One step of the optimiser at `rate`, and of the averages: each keeps `average` of itself,
        at first less."""
        self.optimiser.set_rate(rate)
        self.optimiser.descend(self.model, loss)
        follow = min(average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.averaged[name].lerp_(value, 1 - follow)
        self.state["step"] += 1

    def save(self) -> None:
        """Write everything that the next step depends on."""
        tensors = tensors_of(self.model, self.optimiser)
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.items()}
        make_folder(self.file.parent)
        with staged(self.file) as file:
            save_file(tensors, file, metadata={"state": json.dumps(self.state)})
        self.saved = time.monotonic()

    def save_in_time(self) -> None:
        """The same, if the last time is long ago."""
        if time.monotonic() - self.saved > SAVE_EVERY_S:
            self.save()


def check_recipe(file: Path, recipe: dict[str, Any]) -> None:
    """Raise `TrainingError` if the checkpoint was made by another recipe."""
    found, wanted = state_of(file)["recipe"], json.loads(json.dumps(recipe))
    if found != wanted:
        other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise TrainingError(
            f"Expected {file} made by this recipe. Got another {', '.join(other)}. "
            "Name another folder, or go back to that recipe."
        )


def state_of(file: Path) -> dict[str, Any]:
    """The JSON in the head of a checkpoint, or beside weights that `lab.nano2.ship` wrote."""
    with safe_open(file, "pt") as opened:
        head = opened.metadata() or {}
    if "state" in head:
        state: dict[str, Any] = json.loads(head["state"])
        return state
    beside: dict[str, Any] = json.loads(file.with_suffix(".json").read_text())
    found: dict[str, Any] = beside["state"]
    return found


def averaged_in(file: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, or all of those that `lab.nano2.ship` wrote."""
    tensors = load_file(file)
    return part(tensors, "averaged.") or {name: value.float() for name, value in tensors.items()}
