"""Neighbouring tokens fused into one of the same width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.grid import cells_of_crops
from tokensieve.functional.merge import concat_at
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class TokenConcat(Method):
    """Cut the grid into as many even cells as tokens asked for; keep of each a token to which all
    its m tokens give C / m of its C channels: the i-th, in reading order, the i-th run of them.

    A baseline. Published forms write the m tokens of a cell one behind the other, m C channels,
    and train a projector to read them. Without training the LLM reads C channels, so each token of
    a cell is heard in its own part of them: nothing is averaged, and all but 1 / m of each token
    is lost. Cells of any number, so that the budget is exact; published ones are 2 x 2.
    """

    site: ClassVar[Site] = Site.EMBEDS

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        centre_BL, kept_BL = cells_of_crops(counts, vision.valid_BL, vision.grid)
        return Reduction(kept_BL, concat_at(vision.tokens, centre_BL), centre_BL)
