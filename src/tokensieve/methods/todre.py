"""Diverse tokens by greedy k-centre or max-sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.cosine import cosine_along, mean_token
from tokensieve.functional.diversity import k_centre, max_sum_diversity
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens

_RULES = {"k-centre": k_centre, "max-sum": max_sum_diversity}


@dataclass(frozen=True)
class ToDRE(Method):
    """Stage 1 of ToDRE: tokens chosen greedily, each far in cosine from those before it [1].

    rule: "max-sum" takes the token with the largest sum of distances to those chosen (the paper's
        second version), "k-centre" the one farthest from the nearest of them (its first).
    start: the first token, "farthest" in cosine from the mean token or "closest" to it. Which of
        them could not be read, of the paper no more than its abstracts, nor its released code.

    Its stage inside the LLM is a method of its own.
    Records of nano's first model were made with rule="k-centre".

    Raises `UnknownNameError` for another rule or start.

    [1] ToDRE, arXiv 2505.18757.
    """

    site: ClassVar[Site] = Site.EMBEDS
    paper: ClassVar[str | None] = "ToDRE, arXiv 2505.18757"

    rule: str = option("max-sum", choices=_RULES)
    start: str = option("closest", choices=("closest", "farthest"))

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        mean_BC = mean_token(vision.tokens, vision.valid_BL)
        near_BL = cosine_along(vision.tokens, mean_BC, vision.valid_BL)
        first_BL = near_BL if self.start == "closest" else -near_BL
        choose = _RULES[self.rule]
        return Reduction(choose(vision.tokens, first_BL, counts, vision.valid_BL))
