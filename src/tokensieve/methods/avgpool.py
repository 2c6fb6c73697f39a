"""Spatial average pooling to any number of tokens.

B crops, L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.grid import cells_of_crops
from tokensieve.functional.merge import mean_at
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class AvgPool(Method):
    """Cut the grid into as many even cells as tokens asked for; keep the mean of each, at its
    centre."""

    site: ClassVar[Site] = Site.EMBEDS

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        centre_BL, kept_BL = cells_of_crops(counts, vision.valid_BL, vision.grid)
        return Reduction(kept_BL, mean_at(vision.tokens, centre_BL, rest=False), centre_BL)
