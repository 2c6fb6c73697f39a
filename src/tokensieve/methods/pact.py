"""Unimportant tokens dropped, the others clustered by their keys.

B crops, L tokens, C width, K width of all keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.counts import rounded_share
from tokensieve.functional.density import Kernel, bounded_peaks
from tokensieve.functional.matching import best_edges
from tokensieve.functional.merge import mean_at
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.schedules.base import geometric
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens

_PLACES = (4 / 32,)


@dataclass(frozen=True)
class Pact(Method):
    """Before block 4 of 32: drop what no visual query asks for, cluster the rest by keys, keep each
    cluster's mean [1].

    Queries and keys are those of the block at the cut. Importance is the attention of the mean
    visual query, without rotary positions, times the norm of the hidden state. Clusters are of the
    cosine distances d of keys with rotary positions, all heads side by side: centres are taken in
    order of density, the sum of exp(-d / cutoff) over the important tokens, each farther than
    `cutoff` from all before it; the others join the nearest centre, and so do unimportant ones
    within `recover` * `cutoff` of one.

    important: share of the tokens that is not dropped at once; at least what is to be kept.
    proportional: later layers add the logarithm of a cluster's size to its attention logits, for
        what is decoded too. FlashAttention takes no such mask and is refused.
    as_released: density is the sum of exp(-(d / 2)^2), as in the released code.

    Differs from paper and released code: the budget is exact. Where there are more centres than it
    allows, the densest take in all; where fewer, the most important of the others stay by
    themselves.
    Records of nano's first model were made with keys of the block before, without rotary positions,
    which found a single cluster, and with proportional=False.

    Raises `ConfigError` for options out of range.

    [1] PACT: Pruning and Clustering-Based Token Reduction, arXiv 2504.08966.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "PACT, arXiv 2504.08966"

    important: float = option(0.55, over=0, high=1)
    cutoff: float = option(0.21, over=0, high=2)
    recover: float = option(1.5, low=0)
    proportional: bool = True
    as_released: bool = False

    @property
    def weighs_attention(self) -> bool:
        return self.proportional

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {
            "asked": Signal(Kind.MEAN_UNROTATED, ahead=True),
            "keys": Signal(Kind.ALL_KEYS, ahead=True),
        }

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        valid_BL, keys_BLK = vision.valid_BL, vision.signal("keys")
        worth_BL = vision.signal("asked").float() * vision.tokens.float().norm(dim=-1)
        share_B = rounded_share(valid_BL.sum(-1), self.important, "up")
        asked_BL = topk_mask(worth_BL, torch.maximum(share_B, counts), valid_BL)
        kernel = Kernel(2, 2) if self.as_released else Kernel(self.cutoff)
        centre_BL = bounded_peaks(keys_BLK, asked_BL, counts, self.cutoff, kernel)
        alone_BL = topk_mask(worth_BL, counts - centre_BL.sum(-1), asked_BL & ~centre_BL)
        kept_BL = centre_BL | alone_BL
        cosine_BL, into_BL = best_edges(keys_BLK, valid_BL & ~kept_BL, centre_BL)
        joins_BL = (cosine_BL > -torch.inf) & (
            asked_BL | (1 - cosine_BL <= self.recover * self.cutoff)
        )
        target_BL = into_BL.masked_fill(~(kept_BL | joins_BL), -1)
        return Reduction(kept_BL, mean_at(vision.tokens, target_BL, rest=False), target_BL)
