"""EViT: attentive tokens stay, the others become one.

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
from tokensieve.functional.merge import sum_of, written_at
from tokensieve.functional.places import own_places
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class EViT(Method):
    """At a few encoder layers, keep the tokens CLS attends to and fuse the others into one [1].

    The fused token is the sum of its sources, each times the attention that CLS pays it; it counts
    in the budget, and stands where the most attentive of them stood. Encoders without CLS:
    attention from all tokens.

    stages: layers where tokens go, evenly between first and last; the same share goes at each. Of
        twelve blocks, the paper's layers 4, 7 and 10, counted from 1, are blocks 3, 6 and 9.
    averaged: divide by the sum of that attention, as the paper's text says ("weighted average"),
        where its formula and the released code do not. An encoder that was not trained for a small
        token reads that better.

    Differs from paper and released code: tokens go behind the layer, not between its attention and
    its MLP.
    Records of nano's first model were made with averaged=True.

    [1] Not All Patches Are What You Need (EViT), arXiv 2202.07800.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Not All Patches Are What You Need (EViT), arXiv 2202.07800"

    stages: int = option(3, low=1, high=256)
    averaged: bool = False

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.CLS_ATTENTION)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return staged_blocks(length, keep, blocks, self.stages)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        attention_BL, valid_BL = vision.signal("attention").float(), vision.valid_BL
        kept_BL = topk_mask(attention_BL, counts, valid_BL)
        if torch.equal(kept_BL, valid_BL):
            return Reduction(kept_BL)
        attentive_BL = topk_mask(attention_BL, counts - 1, valid_BL)
        some_B = (counts > 0) & (counts < valid_BL.sum(-1))  # crops that lose tokens, but not all
        one_B1 = (kept_BL & ~attentive_BL).int().argmax(-1, keepdim=True)  # where the others go
        mass_BL = attention_BL.masked_fill(attentive_BL, 0)
        fused_BC = sum_of(vision.tokens, mass_BL, valid_BL)
        if self.averaged:
            total_B = mass_BL.masked_fill(~valid_BL, 0).sum(-1)
            some_B = some_B & (total_B > 0)
            fused_BC = fused_BC / total_B[:, None]
        tokens_BLC = written_at(vision.tokens, one_B1, fused_BC[:, None], some_B[:, None], kept_BL)
        assign_BL = own_places(kept_BL).where(kept_BL, one_B1).masked_fill(~valid_BL, -1)
        assign_BL = assign_BL.masked_fill((counts == 0)[:, None], -1)
        return Reduction(kept_BL, tokens_BLC, assign_BL)
