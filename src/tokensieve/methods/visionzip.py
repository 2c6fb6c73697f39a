"""Tokens that CLS attends to, and others merged into a few.

B crops, L tokens, C width, K width of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.counts import part_of
from tokensieve.functional.matching import nearest_target
from tokensieve.functional.merge import mean_at
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method, merged
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
class VisionZip(Method):
    """Keep dominant tokens, merge all others into a few contextual ones [1].

    Dominant: those that CLS attends to most at the layer the VLM reads. Of the others every step-th
    is a target, step being their number over the number of contextual tokens, rounded down; the
    rest join the target whose key is most alike in cosine (mean of heads). A contextual token is
    the mean of all that joined and the target. Where there is no CLS (SigLIP, Qwen-VL): the mean
    attention of all tokens to each.

    contextual: share of the budget for contextual tokens, at least one of them; 0: none. The
        paper's budgets are 54 + 10, 108 + 20 and 162 + 30, so 10 of 64.
    as_released: a contextual token is its target plus the mean of those that joined, as in the
        released code, so about twice as large.

    Differs from the released code: a contextual token stays at its target's place rather than
    behind the dominant ones, so that positions are in order; CLS itself is never a token.

    Raises `ConfigError` for a share outside 0 to 1.

    [1] VisionZip: Longer is Better but Not Necessary in Vision Language Models, arXiv 2412.04467.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "VisionZip, arXiv 2412.04467"

    contextual: float = option(10 / 64, low=0, high=1)
    as_released: bool = False

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {
            "attention": Signal(Kind.CLS_ATTENTION, encoder.block),
            "keys": Signal(Kind.KEYS, encoder.block),
        }

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        keys_BLK = vision.signal("keys")
        contextual_B = part_of(counts, self.contextual)
        dominant_BL = topk_mask(vision.signal("attention"), counts - contextual_B, vision.valid_BL)
        if self.contextual == 0:
            return Reduction(dominant_BL)
        rest_BL = vision.valid_BL & ~dominant_BL
        target_BL = every_step(rest_BL, contextual_B)
        join_BL = nearest_target(keys_BLK, rest_BL & ~target_BL, target_BL)
        assign_BL = join_BL.masked_fill(~vision.valid_BL, -1)
        kept_BL = dominant_BL | target_BL
        if not self.as_released:
            return merged(vision, kept_BL, mean_at(vision.tokens, assign_BL, rest=False), assign_BL)
        joins_BL = rest_BL & ~target_BL & (assign_BL >= 0)
        mean_BLC = mean_at(vision.tokens, assign_BL, joins_BL.float())
        into_BL = torch.zeros_like(assign_BL).scatter_add_(
            1, assign_BL.clamp_min(0), joins_BL.long()
        )
        summed_BLC = torch.where((into_BL > 0)[..., None], vision.tokens + mean_BLC, vision.tokens)
        return merged(vision, kept_BL, summed_BLC, assign_BL)


def every_step(rest_BL: Bool[Tensor, "B L"], counts_B: Int[Tensor, "B"]) -> Bool[Tensor, "B L"]:
    """True at `counts_B[b]` of the rest of crop b: the first, then every step-th."""
    rank_BL = rest_BL.long().cumsum(-1) - 1
    step_B = (rest_BL.sum(-1) // counts_B.clamp_min(1)).clamp_min(1)
    on_step_BL = (rank_BL % step_B[:, None] == 0) & (rank_BL // step_B[:, None] < counts_B[:, None])
    return rest_BL & on_step_BL
