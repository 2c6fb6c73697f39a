"""Wall-clock milliseconds of a stage, the accelerator waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def now_ms(device: torch.device) -> float:
    """Milliseconds since some fixed moment, after all work queued on `device` is done; on all of
    them for "meta", the device of a model whose weights are elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "meta" and torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            torch.cuda.synchronize(number)
    return time.perf_counter() * 1e3


@contextmanager
def timed(ms: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Add the time spent inside to `ms[stage]`."""
    start = now_ms(device)
    try:
        yield
    finally:
        ms[stage] = ms.get(stage, 0.0) + now_ms(device) - start
