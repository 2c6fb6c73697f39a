"""What tests of extraction share: pictures on disk, and a store as plain values."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tokensieve.data.extraction.extract import ExtractSettings

SMALL = ExtractSettings(chunk=3, batch=2, workers=2)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def contents(store: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The bytes of every shard by name, and the rows of the manifest."""
    shards = {path.name: path.read_bytes() for path in store.glob("*.safetensors")}
    hidden = [path.name for path in store.iterdir() if path.name.startswith(".")]
    assert not hidden, f"left behind: {hidden}"
    return shards, pq.read_table(store / "manifest.parquet").to_pylist()


def in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run `work` in a forked process, maybe killed; what `os.waitpid` says of its end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]
