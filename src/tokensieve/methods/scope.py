"""Tokens that cover the others, the salient ones first.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.coverage import salient_coverage
from tokensieve.methods.base import Method
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)


@dataclass(frozen=True)
class Scope(Method):
    """One after another the token whose choice covers most that is not covered yet, times its
    attention from CLS [1].

    A set of tokens covers another token as well as the highest cosine with one of the set, at
    least 0; what a choice gains is the growth of the sum of that over all tokens. Attention is that
    of the layer the VLM reads, to the power of `alpha`. Where there is no CLS (SigLIP, Qwen-VL):
    the mean attention of all tokens to each.

    alpha: how much attention counts; 0: coverage alone.

    As the released code has it, whose attention is the sum over heads: the same choice, since a
    factor changes none. That code can add attention to the gain as well; this cannot.

    Raises `ConfigError` for a negative `alpha`.

    [1] SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs,
    arXiv 2510.24214.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "SCOPE, arXiv 2510.24214"

    alpha: float = option(1.0, low=0, high=100)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        # largest 1, or a power of small numbers is 0 for all
        attention_BL = vision.signal("attention").float().masked_fill(~vision.valid_BL, 0)
        attention_BL = attention_BL / attention_BL.amax(-1, keepdim=True).clamp_min(1e-30)
        saliency_BL = attention_BL.clamp_min(0) ** self.alpha
        return Reduction(salient_coverage(vision.tokens, saliency_BL, counts, vision.valid_BL))
