"""Whether what was asked for can fit into this machine at all, before any of it is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tokensieve.errors import ConfigError

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_STATES = 4  # a parameter in training: itself, its gradient and Adam's two moments


def memory_bytes() -> int:
    """Of this machine, or of the container that this process is in."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(whole, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return whole


def check_room(wanted: int, what: str, advice: str) -> None:
    """Raise `ConfigError` for more bytes than there are, whatever else is in memory."""
    if wanted > (there := memory_bytes()):
        raise ConfigError(
            f"Expected {what} to fit into the {there / 1e9:,.1f} GB of this machine. Got "
            f"{wanted / 1e9:,.1f} GB. {advice}"
        )


def check_trainable(make: Callable[[], nn.Module]) -> None:
    """Raise `ConfigError` for a module too large to train here; nothing of it is allocated."""
    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in make().parameters())
    check_room(
        numbers * 4 * _STATES, f"{numbers:,} numbers, their gradients and Adam's moments,",
        "Set a smaller depth, width or ffn.",
    )  # fmt: skip
