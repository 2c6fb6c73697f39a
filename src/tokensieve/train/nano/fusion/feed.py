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

from tokensieve.data.synth import GRID
from tokensieve.hf.fingerprint import encoder_info
from tokensieve.hf.nano import load_nano
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.train.nano.fusion.blocks import Blocks
from tokensieve.train.nano.fusion.study import Arm
from tokensieve.train.nano.packing import PATCHES, Example, Packed, pack
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
        self, rng: Generator, examples: list[Example], questions: int = 24,
        key_weight: float = 0.0, share: float = 1.0,
    ) -> tuple[Tensor, Packed]:  # fmt: skip
        """Features of all patches, (B, L, X), and the batch with `share` of the arm's tokens."""
        total = self.config.tokens // self.config.fused
        in_cells = [of_cells(example, self.config.kernel) for example in examples]
        shown = max(1, round(share * total))
        batch = pack(rng, in_cells, shown, questions, key_weight, renumber=0.0, total=total)
        features_BLX = self.blocks.rows(batch.rows, self.config.blocks)
        if self.arm.keeper is not None and shown == total:
            batch = kept_batch(batch, self.kept(rng, features_BLX))
        return features_BLX, several(batch, self.config.fused)

    def kept(self, rng: Generator, features_BLX: Tensor) -> Tensor:
        """Which tokens stay, (B, N), ascending."""
        count = self.arm.kept
        if self.keeper is None:
            drawn = [rng.permutation(PATCHES)[:count] for _ in features_BLX]
            return torch.tensor(np.array(drawn)).sort(-1).values
        vision = VisionTokens(features_BLX[..., -self.blocks.width :], (GRID, GRID))
        reduced = self.keeper.reduce(vision, torch.full((len(features_BLX),), count))
        return torch.stack(reduced.indices())


def of_cells(example: Example, kernel: int) -> Example:
    """`example` with the cells, in place of the patches, that its questions need."""
    side = GRID // kernel
    needs = [
        [np.unique(at // GRID // kernel * side + at % GRID // kernel) for at in groups]
        for groups in example.needs
    ]
    return replace(example, needs=needs)


def kept_batch(batch: Packed, kept_BN: Tensor) -> Packed:
    """`batch`, of all tokens, with those alone, at the positions they had."""
    at = kept_BN[:, None].expand(-1, batch.source.shape[1], -1)
    return replace(batch, kept=kept_BN, places=kept_BN, source=batch.source.gather(2, at))


def several(batch: Packed, fused: int) -> Packed:
    """`batch`, of cells, with `fused` tokens for each of them, one behind the other."""
    if fused == 1:
        return batch
    tokens = (batch.kept[..., None] * fused + torch.arange(fused)).flatten(1)
    source = batch.source.repeat_interleave(fused, -1)
    return replace(batch, kept=tokens, places=tokens, start=batch.start * fused, source=source)
