"""A batch as an arm's LLM has it: features before the projector, and where its tokens stand.

B pictures, L = 256 patches, X channels of all blocks read, N visual tokens of the LLM, T text
tokens, k kernel side.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from lab.nano.packing import PATCHES, Example, Packed, pack
from lab.studies.fusion.arms import Arm
from lab.studies.fusion.blocks import Blocks
from tokensieve.data.synth import GRID
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.models.nano import load_nano
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.types import VisionTokens


class Feed:
    """Draws the batches of one arm."""

    def __init__(self, arm: Arm, blocks: Blocks, selector: str) -> None:
        self.arm, self.blocks = arm, blocks
        self.config = arm.config(blocks.width, 1)
        self.keeper: Method | None = None
        if arm.keeper == "selector":
            info = encoder_info(load_nano()[0])
            self.keeper = get_method("selector", weights=Path(selector)).bind(info)

    def __call__(
        self, rng: Generator, examples: list[Example], questions: int = 24, key_weight: float = 0.0
    ) -> tuple[Tensor, Packed]:
        """Features (B, L, X) of all tokens, and the batch of N tokens."""
        batch = pack(rng, examples, PATCHES, questions, key_weight, renumber=0.0)
        features_BLX = self.blocks.rows(batch.rows, self.config.blocks)
        if self.arm.keeper is None:
            return features_BLX, numbered(batch, self.config.tokens)
        kept_BN = self.kept(rng, features_BLX)
        return features_BLX, replace(batch, kept=kept_BN, places=kept_BN)

    def kept(self, rng: Generator, features_BLX: Tensor) -> Tensor:
        """Which tokens stay, (B, N), ascending."""
        count = self.arm.kept
        if self.keeper is None:
            drawn = [rng.permutation(PATCHES)[:count] for _ in features_BLX]
            return torch.tensor(np.array(drawn)).sort(-1).values
        vision = VisionTokens(features_BLX[..., -self.blocks.width :], (GRID, GRID))
        reduced = self.keeper.reduce(vision, torch.full((len(features_BLX),), count))
        return torch.stack(reduced.indices())


def numbered(batch: Packed, tokens: int) -> Packed:
    """`batch` with so many visual tokens, numbered from 0; text follows them."""
    places = torch.arange(tokens).expand(len(batch.kept), -1)
    return replace(batch, kept=places, places=places, start=torch.full_like(batch.start, tokens))
