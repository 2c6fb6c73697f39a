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
from tokensieve.methods.base import Method
from tokensieve.schedules.base import geometric
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens

_PLACES = (2 / 32, 6 / 32, 15 / 32)


@dataclass(frozen=True)
class MustDropLLM(Method):
    """Drop a token only if both its mean and its largest attention from text tokens are below
    their thresholds: the second stage of MustDrop [1].

    The two thresholds cut equally deep into the two rankings, as deep as the budget asks; among
    tokens on the same depth the larger mean stays. `keep` is what remains after the last of three
    steps.

    Differs from the paper: its thresholds are numbers, so the budget follows from them; here they
    follow from the budget. The layers are ours.

    [1] Multi-Stage Vision Token Dropping, arXiv 2411.10803.
    """

    site: ClassVar[Site] = Site.LLM
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "MustDrop, arXiv 2411.10803"

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
        return Reduction(topk_mask(scores_BL, counts, valid_BL))


def _place(scores_BL: Float[Tensor, "B L"], valid_BL: Tensor) -> Int[Tensor, "B L"]:
    """Each token's place in falling order, the earlier token first on a tie."""
    ranked = scores_BL.masked_fill(~valid_BL, -torch.inf)
    return ranked.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
