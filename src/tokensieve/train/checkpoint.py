"""Checkpoints without pickle: tensors in safetensors, the rest in JSON.

Each is a folder of its own, complete or not there under its name: a process killed at any moment
leaves at least the one before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import ConfigError, WeightsError
from tokensieve.fields import check_number
from tokensieve.files import retire, written_folder
from tokensieve.nn.pretrained import (
    load_weights,
    read_json,
    read_weights,
    write_json,
    write_weights,
)

PREFIX = "checkpoint-"


def save_checkpoint(
    out: Path, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Write `out`/checkpoint-STEP with model, optimiser and `record`; older ones go after it.

    Raises `ConfigError` where the disk refuses; the checkpoint before is then still there.
    """
    folder = _folder(out, step)
    moments = {
        f"{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if not (folder / "state.json").is_file():  # else of the same step, so of the same content
        with written_folder(folder, replace=True) as part:
            write_weights(part / "model.safetensors", dict(model.state_dict()))
            write_weights(part / "optimiser.safetensors", moments)
            write_json(part / "state.json", {**record, "step": step})
    for old in _found(out):
        if old != folder:
            retire(old)


def load_checkpoint(
    out: Path, model: nn.Module, optimiser: torch.optim.Optimizer, record: dict[str, Any]
) -> int:
    """Steps already done: 0 without a checkpoint, else `model` and `optimiser` are restored.

    Raises `ConfigError` if the checkpoint belongs to another recipe, seed or data, `WeightsError`
    if it is damaged.
    """
    found = _found(out)
    if not found:
        return 0
    folder = found[-1]
    stored = read_json(folder / "state.json")
    step = check_number("step", stored.pop("step", None), low=0)
    if (different := difference(stored, plain(record))) is not None:
        raise ConfigError(
            f"Expected the checkpoint in {folder} to be of this recipe, seed and data. It differs "
            f"in {different}. Choose another --out, or delete it."
        )
    load_weights(model, folder / "model.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    shapes = [p.shape for group in optimiser.param_groups for p in group["params"]]
    file = folder / "optimiser.safetensors"
    for name, value in read_weights(file).items():
        index, _, field = name.partition(".")
        own = int(index) < len(shapes) if index.isdecimal() else False
        if not own or value.shape not in (shapes[int(index)], torch.Size()):
            raise WeightsError(
                f"Expected moments of the {len(shapes)} tensors that learn in {file}. Got {name} "
                f"of shape {tuple(value.shape)}. Delete {folder}: training starts anew."
            )
        state.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step


def _folder(out: Path, step: int) -> Path:
    return out / f"{PREFIX}{step:09d}"


def _found(out: Path) -> list[Path]:
    """Checkpoints, oldest first. A folder whose removal was cut short has lost its state."""
    return sorted(f for f in out.glob(f"{PREFIX}*") if (f / "state.json").is_file())


def difference(stored: Any, wanted: Any, name: str = "") -> str | None:
    """Where two plain values differ first, as "train.lr (0.1, not 0.2)"."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted({*stored, *wanted}):
            inner = f"{name}.{key}" if name else key
            found = difference(stored.get(key), wanted.get(key), inner)
            if found is not None:
                return found
        return None
    return None if stored == wanted else f"{name} ({stored}, not {wanted})"


def plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
