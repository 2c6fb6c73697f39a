"""Tokens that CLS attends to, and others without duplicates.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.counts import rounded_share
from tokensieve.functional.duplicates import without_duplicates
from tokensieve.methods.base import Method, keep_none
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
class VisPruner(Method):
    """Keep the tokens CLS attends to most; of the others take out duplicates until the budget is
    met [1].

    Duplicates go in rounds: the others, by attention at first, are dealt in turn to two halves;
    the `at_once` of the first with the highest cosine to one of the second go, and what is left
    begins the next round, the more duplicated in front. Attention is that of the layer the VLM
    reads, mean over heads; where there is no CLS (SigLIP, Qwen-VL), the mean of all tokens' to
    each. Cosines are those of the encoder's features.

    important: share of the budget for attention, rounded down.
    at_once: how many go in a round.

    As the released code has it, but for odd numbers of tokens, of which it takes no note of the
    last. The paper was read by its abstract: what it leaves to the code is the code's.

    Raises `ConfigError` for a share outside 0 to 1, or a round of none.

    [1] Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs
    (VisPruner), arXiv 2412.01818.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "VisPruner, arXiv 2412.01818"

    important: float = option(0.5, low=0, high=1)
    at_once: int = option(8, low=1, high=2**20)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        attention_BL, valid_BL = vision.signal("attention").float(), vision.valid_BL
        order_BL = attention_BL.masked_fill(~valid_BL, -torch.inf).argsort(
            dim=-1, descending=True, stable=True
        )
        first_B = rounded_share(counts, self.important, "down")
        kept_BL = keep_none(vision)
        sizes = torch.stack([valid_BL.sum(-1), counts, first_B]).T.tolist()  # waits once
        for b, (n, count, first) in enumerate(sizes):
            rest = order_BL[b, first:n]
            kept_BL[b, order_BL[b, :first]] = True
            kept_BL[b, without_duplicates(vision.tokens[b], rest, count - first, self.at_once)] = (
                True
            )
        return Reduction(kept_BL)
