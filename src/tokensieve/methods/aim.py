"""Tokens merged pair by pair until the budget is met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.matching import match_down
from tokensieve.functional.merge import mean_at
from tokensieve.methods.base import Method, merged
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class AIM(Method):
    """Stage 1 of AIM: bipartite soft matching of embeddings, repeated until the budget is met [1].

    Each round deals the tokens in turn to two halves, joins the most alike pairs, at most half of
    the tokens, and keeps the order. A merged token is the mean of all tokens in it. The paper
    keeps a quarter (two full rounds): keep=0.25.

    Its stage inside the LLM is a method of its own.

    [1] AIM, arXiv 2412.03248.
    """

    site: ClassVar[Site] = Site.EMBEDS
    paper: ClassVar[str | None] = "AIM, arXiv 2412.03248"

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        kept_BL, assign_BL = match_down(vision.tokens, counts, vision.valid_BL)
        return merged(vision, kept_BL, mean_at(vision.tokens, assign_BL, rest=False), assign_BL)
