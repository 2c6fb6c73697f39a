"""Tokens that the text asks for as a whole, or that one word asks for.

B crops, L tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.functional.text import text_attention
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import PROTECTED, Method
from tokensieve.schedules.base import geometric
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens

_PLACES = (3 / 32, 7 / 32, 11 / 32, 15 / 32)  # behind blocks 2, 6, 10 and 14


@dataclass(frozen=True)
class MustDropLLM(Method):
    """Drop a token only if both its mean and its largest attention from text tokens are below
    their thresholds: the second and third stage of MustDrop [1].

    The two thresholds cut equally deep into the two rankings, as deep as the budget asks; among
    tokens on the same depth the larger mean stays. Behind blocks 2, 6, 10 and 14 of 32, counted
    from 0, as in the released code; `keep` is what remains after the last of these steps. Before
    all others stay the key tokens, those that "mustdrop" protected at the encoder where the two
    are a pair, ("mustdrop", "mustdrop-llm").

    output_cache: once the prompt is read, the layers behind the first step forget what later ones
        dropped, so that an answer is written from what the last one kept.

    Differs from paper and released code: thresholds there are numbers (.0012 of the sum of the
    means and .001), so the budget follows from them; here they follow from the budget. The block of
    the first step itself forgets nothing here, in the released code it does.
    Records of nano's first model were made before blocks 2, 6 and 15, without key tokens and cache.

    [1] Multi-Stage Vision Token Dropping, arXiv 2411.10803.
    """

    site: ClassVar[Site] = Site.LLM
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "MustDrop, arXiv 2411.10803"

    output_cache: bool = True

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.TEXT_ATTENTION)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        attention_BLT, valid_BL = text_attention(vision), vision.valid_BL
        whole_BL = _place(attention_BLT.mean(-1), valid_BL)
        single_BL = _place(attention_BLT.amax(-1), valid_BL)
        depth_BL = torch.minimum(whole_BL, single_BL)
        order_BL = depth_BL * (valid_BL.shape[1] + 1) + whole_BL  # one number, exact as an integer
        scores_BL = -_place(-order_BL.double(), valid_BL).float()
        if PROTECTED in vision.signals:
            scores_BL = scores_BL + vision.signal(PROTECTED).float() * valid_BL.shape[1]
        return Reduction(topk_mask(scores_BL, counts, valid_BL))

    @property
    def forgets(self) -> bool:
        return self.output_cache


def _place(scores_BL: Float[Tensor, "B L"], valid_BL: Tensor) -> Int[Tensor, "B L"]:
    """Each token's place in falling order, the earlier token first on a tie."""
    ranked = scores_BL.masked_fill(~valid_BL, -torch.inf)
    return ranked.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
