"""Checkpoints, resume, schedules and the log: what both trained stages share.

A checkpoint is one safetensors file (weights and optimiser moments) and one JSON file with
the step; the JSON is written last, so that a checkpoint without it does not count. (`lab.nano2`
keeps the same tensors and more in one file.)
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokensieve.files import Lines, make_folder, staged, write_text


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to 2 % of `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def tensors_of(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of weights and moments: `model.<name>` and `optimiser.<parameter>.<name>`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, slots in optimiser.state_dict()["state"].items():
        for name, value in slots.items():
            tensors[f"optimiser.{number}.{name}"] = torch.as_tensor(value)
    return {name: value.detach().contiguous().clone() for name, value in tensors.items()}


def restore(
    tensors: Mapping[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Take over what `tensors_of` named."""
    model.load_state_dict(part(tensors, "model."))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in part(tensors, "optimiser.").items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})


def part(tensors: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `head`, without it."""
    return {name[len(head) :]: value for name, value in tensors.items() if name.startswith(head)}


def save_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write weights, moments and step to `folder`, atomically."""
    make_folder(folder)
    with staged(folder / "state.safetensors") as file:
        save_file(tensors_of(model, optimiser), file)
    write_text(folder / "step.json", json.dumps({"step": step}))


def load_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Restore what `save_state` wrote; return the step to go on with (0 if there is none)."""
    if not (folder / "step.json").exists():
        return 0
    restore(load_file(folder / "state.safetensors"), model, optimiser)
    return int(json.loads((folder / "step.json").read_text())["step"])


class Log:
    """One JSON object a line, appended to a file and printed."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path, self.began = path, time.monotonic()

    def write(self, **entry: Any) -> None:
        """Append `entry` with the seconds since this run began."""
        entry["s"] = round(time.monotonic() - self.began, 1)
        text = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in entry.items()})
        lines = Lines(self.path)
        lines.write(text)
        lines.close()
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
