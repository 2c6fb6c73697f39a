"""Spatial average pooling to any number of tokens.

B crops, L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.functional.grid import cells_of_crops
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
        return Reduction(kept_BL, mean_at(vision.tokens, centre_BL), centre_BL)


def mean_at(
    tokens_BLC: Float[Tensor, "B L C"], target_BL: Int[Tensor, "B L"]
) -> Float[Tensor, "B L C"]:
    """The mean of the tokens that share a target, written at the target; others unchanged.

    Targets of -1 take part in nothing. A token that is its own only source stays bit for bit.
    """
    B, L, C = tokens_BLC.shape
    weight_BL = (target_BL >= 0).float()
    index_BL = target_BL.clamp_min(0)
    size_BL = torch.zeros_like(weight_BL).scatter_add_(1, index_BL, weight_BL)
    # filled, not multiplied: padding may hold NaN
    source_BLC = tokens_BLC.float().masked_fill((target_BL < 0)[..., None], 0)
    total_BLC = torch.zeros_like(source_BLC).scatter_add_(
        1, index_BL[..., None].expand(B, L, C), source_BLC
    )
    mean_BLC = (total_BLC / size_BL.clamp_min(1)[..., None]).to(tokens_BLC.dtype)
    return mean_BLC.where((size_BL > 1)[..., None], tokens_BLC)
