"""What every block of nano's encoder says of the pool's pictures, kept on disk in fp16.

n pictures of a shard, L = 256 patches, M blocks, C channels of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.nano.clip import normalise
from lab.nano.features import CHUNK, with_questions
from lab.nano.pool import open_shard
from tokensieve.files import make_folder, written_whole
from tokensieve.hf.models.nano import load_nano
from tokensieve.nn.fusion import spaced_blocks

FOLDER = "features-blocks"


@torch.no_grad()
def cache_blocks(data: Path, shards: Sequence[tuple[str, int]]) -> None:
    """Write `data`/features-blocks/<split>-<number>.npy, (n, L, M C), for shards that have none."""
    tower = load_nano()[0].model.vision_tower
    make_folder(data / FOLDER)
    for split, number in shards:
        path = data / FOLDER / f"{split}-{number:04d}.npy"
        if path.exists():
            continue
        shard, parts = open_shard(data / "pool", split, number), []
        images = shard.images[with_questions(shard)]
        for start in range(0, len(images), CHUNK):
            pixels = normalise(torch.from_numpy(images[start : start + CHUNK]))
            states = tower(pixels, output_hidden_states=True).hidden_states[1:]
            parts.append(torch.cat([block[:, 1:] for block in states], -1).half().numpy())
        with written_whole(path) as file:
            np.save(file, np.concatenate(parts))


class Blocks:
    """Features by picture, read from disk as they are asked for."""

    def __init__(self, data: Path, shards: Sequence[tuple[str, int]], width: int) -> None:
        paths = [data / FOLDER / f"{split}-{number:04d}.npy" for split, number in shards]
        self.parts = [np.load(path, mmap_mode="r") for path in paths]
        self.first = np.cumsum([0, *map(len, self.parts)])
        self.width = width

    def rows(self, rows: NDArray[np.int64], count: int) -> Tensor:
        """(B, L, count C) of `count` evenly spaced blocks, float32."""
        found = []
        for row in rows:
            part = int(np.searchsorted(self.first, row, side="right")) - 1
            found.append(self.parts[part][row - self.first[part]])
        depth = found[0].shape[-1] // self.width
        values = np.stack(found).reshape(len(found), -1, depth, self.width)
        chosen = values[:, :, [block - 1 for block in spaced_blocks(depth, count)]]
        return torch.from_numpy(chosen).float().flatten(2)
