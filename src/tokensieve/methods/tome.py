"""ToMe: a few of the most alike tokens are merged behind every layer of the encoder.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.blocks import even_blocks
from tokensieve.functional.matching import match_down
from tokensieve.functional.merge import mean_at
from tokensieve.methods.base import Method, merged
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class ToMe(Method):
    """Behind every encoder layer, merge the tokens most alike in their keys [1].

    Tokens are dealt in turn to two halves, CLS first where there is one; each of the first is
    paired with the one of the second whose key (mean of heads) has the highest cosine, and the best
    pairs become one token, the mean by the number of patches they stand for. The same number goes
    behind every layer. CLS joins nothing and is not joined.

    proportional: later layers add the logarithm of that number to a token's attention logits.

    Differs from paper and released code: pairs merge behind the layer, not between its attention
    and its MLP, which reads them unmerged; keys are those of the layer, as in the paper. Tokens are
    dealt in the order of the picture at every layer; the released code lines up what is left of the
    first half before the second, so that from the second layer on the halves are others.
    Records of nano's first model were made with CLS not dealt.

    Raises `BudgetError` where halving at every layer does not get down to the budget.

    [1] Token Merging: Your ViT But Faster, arXiv 2210.09461.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Token Merging: Your ViT But Faster, arXiv 2210.09461"

    proportional: bool = True

    @property
    def weighs_attention(self) -> bool:
        return self.proportional

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"keys": Signal(Kind.KEYS)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return even_blocks(length, keep, blocks)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        keys_BLK, sizes_BL = vision.signal("keys"), vision.sizes
        kept_BL, assign_BL = match_down(keys_BLK, counts, vision.valid_BL, sizes_BL, cls=vision.cls)
        return merged(
            vision, kept_BL, mean_at(vision.tokens, assign_BL, sizes_BL, rest=False), assign_BL
        )
