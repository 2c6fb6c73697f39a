"""No image: what the question alone gives away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.methods.base import Method, keep_none
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class NoImage(Method):
    """Keep no token, whatever the budget."""

    site: ClassVar[Site] = Site.EMBEDS
    budgeted: ClassVar[bool] = False
    reads_picture: ClassVar[bool] = False

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        return Reduction(keep_none(vision))
