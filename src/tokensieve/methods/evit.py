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
from tokensieve.functional.merge import mean_at
from tokensieve.functional.places import own_places
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class EViT(Method):
    """At a few encoder layers, keep the tokens CLS attends to and fuse the others into one [1].

    The fused token is the mean of its sources by their attention; it counts in the budget, and
    stands where the most attentive of them stood. Encoders without CLS: attention from all tokens.

    stages: layers where tokens go, evenly between first and last; the same share goes at each.

    Differs from the paper: tokens go behind the layer, not between its attention and its MLP.
    Differs from the released code: that sums without dividing by the attention of the fused.

    [1] Not All Patches Are What You Need (EViT), arXiv 2202.07800.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Not All Patches Are What You Need (EViT), arXiv 2202.07800"

    stages: int = option(3, low=1, high=256)

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
        fused_BL = kept_BL & ~attentive_BL  # one of each crop: where the others go
        own_BL = own_places(kept_BL)
        one_B1 = fused_BL.int().argmax(-1, keepdim=True)
        assign_BL = own_BL.where(kept_BL, one_B1).masked_fill(~valid_BL, -1)
        assign_BL = assign_BL.masked_fill((counts == 0)[:, None], -1)
        return Reduction(kept_BL, mean_at(vision.tokens, assign_BL, attention_BL), assign_BL)
