"""Checkpoints, resume, schedules and the log: what both trained stages share.

A checkpoint is one safetensors file (weights and optimiser moments) and one JSON file with
the step; the JSON is written last, so that a checkpoint without it does not count.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tokensieve.files import Lines, make_folder, staged, write_text


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to 2 % of `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def save_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write weights, moments and step to `folder`, atomically."""
    make_folder(folder)
    tensors = {f"model.{k}": v.detach().contiguous().clone() for k, v in model.state_dict().items()}
    for number, slots in optimiser.state_dict()["state"].items():
        for name, value in slots.items():
            tensors[f"optimiser.{number}.{name}"] = torch.as_tensor(value).contiguous().clone()
    with staged(folder / "state.safetensors") as part:
        save_file(tensors, part)
    write_text(folder / "step.json", json.dumps({"step": step}))


def load_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Restore what `save_state` wrote; return the step to go on with (0 if there is none)."""
    if not (folder / "step.json").exists():
        return 0
    tensors = load_file(folder / "state.safetensors")
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
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
