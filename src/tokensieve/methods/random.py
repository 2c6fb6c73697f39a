"""Random tokens: the baseline that published pruners have lost to.

B crops, L tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Random(ScoringMethod):
    """Keep tokens drawn uniformly, by `seed` and the crop's key alone."""

    site: ClassVar[Site] = Site.EMBEDS
    reads_tokens: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True

    seed: int = 0

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        """Uniform noise, drawn for real tokens only: padding changes nothing."""
        valid_BL = vision.valid_BL.cpu()
        scores_BL = torch.zeros(valid_BL.shape)
        for b, key in enumerate(vision.keys or range(len(valid_BL))):
            bits = random.Random(f"{self.seed}/{key}").getrandbits(63)
            noise = torch.rand(
                int(valid_BL[b].sum()), generator=torch.Generator().manual_seed(bits)
            )
            scores_BL[b, valid_BL[b]] = noise
        return scores_BL.to(vision.tokens.device)
