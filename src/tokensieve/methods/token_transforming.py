"""Token Transforming: every token becomes part of several of those that stay.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.blocks import staged_blocks
from tokensieve.functional.merge import spread_to
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class TokenTransforming(Method):
    """At a few encoder layers, keep the tokens CLS attends to and share the others among them [1].

    The new tokens are a matrix times the old ones. A kept token has weight 1 in its own row; every
    other token is shared among the rows by a softmax of its cosine (of keys) to the kept ones.
    Rows are divided by their sums. An encoder without CLS: attention from all tokens.

    temperature: of the softmax; near 0 each token joins only the nearest kept one.
    stages: layers where tokens go, evenly between first and last; the same share goes at each.

    Differs from the paper: tokens go behind the layer. That a kept token has weight 1 and rows are
    divided by their sums is the paper's matrix as its abstract has it; temperature, what is
    compared and which layers are choices made here. The released code was not looked at.

    [1] Token Transforming, arXiv 2506.05709.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Token Transforming, arXiv 2506.05709"

    temperature: float = option(0.1, over=0)
    stages: int = option(3, low=1, high=256)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.CLS_ATTENTION), "keys": Signal(Kind.KEYS)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return staged_blocks(length, keep, blocks, self.stages)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        kept_BL = topk_mask(vision.signal("attention"), counts, vision.valid_BL)
        if torch.equal(kept_BL, vision.valid_BL):
            return Reduction(kept_BL)
        others_BL = vision.valid_BL & ~kept_BL
        new_BLC = spread_to(
            vision.tokens, vision.signal("keys"), others_BL, kept_BL, self.temperature
        )
        return Reduction(kept_BL, new_BLC)
