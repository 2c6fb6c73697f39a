"""Small feature stores whose novel tokens are known, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import torch

from tokensieve.data.store.features import FeatureStore, write_store
from tokensieve.train.selector.recipe import Recipe, make_recipe
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (5, 5))
SMALL = (
    "selector.depth=1", "reconstructor.depth=1", "train.batch=4", "train.normaliser_crops=16",
    "train.lr=0.001", "run.validation_crops=8",
)  # fmt: skip


def toy(crops: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the tokens are near copies of one of two prototypes, half are news."""
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(2, 16, generator=torch.Generator().manual_seed(99))
    base = prototypes[torch.randint(2, (crops, 1), generator=g)]
    copies = base + 0.05 * torch.randn(crops, 25, 16, generator=g)
    novel = torch.rand(crops, 25, generator=g) < 0.5
    return torch.where(novel[..., None], torch.randn(crops, 25, 16, generator=g), copies), novel


def toy_store(folder: Path, crops: int = 64, pixels: bool = False, source: str = "memory") -> Path:
    """A store of toy features, with pictures of 20 pixels if asked."""
    drawn = None
    if pixels:
        noise = torch.rand(crops, 3, 5, 5, generator=torch.Generator().manual_seed(1))
        drawn = noise.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return write_store(folder, toy(crops)[0], ENCODER, pixels_N3HV=drawn, source=source)


def small(store: FeatureStore, *settings: str, preset: str = "default") -> Recipe:
    """A recipe of one layer each."""
    return make_recipe(store.encoder, preset, [*SMALL, *settings])
