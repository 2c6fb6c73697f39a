"""TokenFLEX: features pooled to as many tokens as asked, before the projector.

B crops, L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.grid import cells_of_crops
from tokensieve.functional.merge import mean_at
from tokensieve.methods.base import Method, merged
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class TokenFlex(Method):
    """Before the projector, the mean of the features of each of as many even cells as asked [1].

    For a model trained so: `tokensieve train fusion --kind swiglu --kernel 1 --sieve tokenflex
    --keep 64,144,256` draws the number anew in each step, and one model then reads all of them.

    Differs from the paper: cells do not overlap where the grid does not divide, and their number
    need not be a square.

    [1] TokenFLEX, arXiv 2504.03154.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "TokenFLEX, arXiv 2504.03154"

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        centre_BL, kept_BL = cells_of_crops(counts, vision.valid_BL, vision.grid)
        return merged(vision, kept_BL, mean_at(vision.tokens, centre_BL, rest=False), centre_BL)
