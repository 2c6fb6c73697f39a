"""All tokens: the reference every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.methods.base import Method, keep_all
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Full(Method):
    """Keep every token, whatever the budget."""

    site: ClassVar[Site] = Site.EMBEDS
    budgeted: ClassVar[bool] = False

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        return Reduction(keep_all(vision))
