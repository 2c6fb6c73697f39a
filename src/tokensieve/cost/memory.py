"""The most memory a run held at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    resets = Path("/proc/self/clear_refs")  # 5: forget the peak resident size (Linux)
    with suppress(OSError):  # not there, or not allowed: the peak is then since the start
        resets.write_text("5")


def peak(device: torch.device) -> int:
    """Bytes, since `reset_peak`: allocated on cuda, resident in the process on cpu (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return found[0] if found else 0
