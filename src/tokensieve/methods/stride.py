"""A uniform grid of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.grid import cells_of_crops
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Stride(Method):
    """Cut the grid into as many even cells as tokens asked for; keep the token at each centre."""

    site: ClassVar[Site] = Site.EMBEDS
    reads_tokens: ClassVar[bool] = False

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        _, kept_BL = cells_of_crops(counts, vision.valid_BL, vision.grid)
        return Reduction(kept_BL)
