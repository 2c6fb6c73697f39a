"""A pool of generated pictures on disk, made once and read by every stage.

N: pictures of a shard; S: picture side in pixels; G: patches per side; F: label maps.
Shard number i holds pictures i*N .. i*N+N-1 of its split, kinds in a fixed rotation, as
`images.npy` (N, S, S, 3), `labels.npy` (N, F, G, G), `text.npy` (N, G, G), all uint8, and
`pictures.json` (kind and questions). A shard appears under its name only when complete.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.nano.parallel import rank_and_world
from tokensieve.data.synth import ROTATION, generate
from tokensieve.data.synth.picture import Picture
from tokensieve.files import write_text, written_folder
from tokensieve.folders import Kind, lies_in

RUN = Kind("the making of nano", lies_in("pool", "encoder-state", "lm-state", "control-state"))


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    text: NDArray[np.uint8]
    pictures: list[dict[str, Any]]


def shard_path(root: Path, split: str, number: int) -> Path:
    """Where shard `number` of `split` is kept."""
    return root / f"{split}-{number:04d}"


def make_shard(root: Path, split: str, number: int, size: int, max_lines: int = 99) -> Path:
    """Generate shard `number` of `split` unless it is there; return its folder."""
    path = shard_path(root, split, number)
    if path.exists():
        return path
    first = number * size
    chosen = [(ROTATION[i % len(ROTATION)], i) for i in range(first, first + size)]
    pictures = [generate(kind, i, split, max_lines) for kind, i in chosen]
    with written_folder(path) as part:
        np.save(part / "images.npy", np.stack([np.asarray(p.image) for p in pictures]))
        np.save(part / "labels.npy", np.stack([p.labels.stack() for p in pictures]))
        np.save(part / "text.npy", np.stack([p.text_mask for p in pictures]).astype(np.uint8))
        write_text(part / "pictures.json", json.dumps([describe(p) for p in pictures]))
    return path


def describe(picture: Picture) -> dict[str, Any]:
    """Kind and questions of `picture`, with the patches of each value, as plain JSON."""
    values = [np.flatnonzero(mask).tolist() for mask in picture.value_mask]
    return {
        "kind": picture.kind,
        "unseen": picture.unseen_font,
        "questions": [asdict(question) for question in picture.questions],
        "values": values,
    }


def open_shard(root: Path, split: str, number: int, wait_s: float = 0.0) -> Shard:
    """Map shard `number` of `split`, waiting up to `wait_s` seconds for another process to
    finish it. Raises FileNotFoundError when it does not come."""
    path, end = shard_path(root, split, number), time.monotonic() + wait_s
    while not path.exists():
        if time.monotonic() > end:
            raise FileNotFoundError(f"Expected shard {path}. Make the pool first: --stage pool.")
        time.sleep(1)
    images, labels, text = (
        np.load(path / f"{name}.npy", mmap_mode="r") for name in ("images", "labels", "text")
    )
    return Shard(images, labels, text, json.loads((path / "pictures.json").read_text()))


def make_pool(root: Path, shards: list[tuple[str, int]], size: int) -> None:
    """Generate the missing ones of `shards` (split, number); processes of a group share them."""
    rank, world = rank_and_world()
    for split, number in shards[rank::world]:
        make_shard(root, split, number, size)
