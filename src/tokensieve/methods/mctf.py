"""MCTF: merging by likeness, little information and small size.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.blocks import even_blocks
from tokensieve.functional.matching import best_edges, deal, follow, join, join_down
from tokensieve.functional.merge import mean_at
from tokensieve.functional.places import own_places
from tokensieve.methods.base import Method, merged
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Mctf(Method):
    """Behind every encoder layer, fuse tokens that are alike, uninformative and small [1].

    A pair attracts by ((1 + cosine) / 2)^similarity / (a_i a_j)^information / (s_i s_j)^size: a is
    the attention a token receives, s the number of patches it stands for. Tokens are dealt in turn
    to two halves; half of the pairs send a token of the first to the second, then half the other
    way. A fused token is the mean of its sources by a times s.

    similarity, information, size: those exponents; 0 leaves a criterion out.
    proportional: later layers add log s to a token's attention logits.

    Differs from the paper: attention is that of the layer just run, not one step ahead, which would
    run the next layer's queries and keys on unmerged tokens first.

    Raises `BudgetError` where halving at every layer does not get down to the budget.

    [1] Multi-criteria Token Fusion with One-step-ahead Attention, arXiv 2403.10030.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Multi-criteria Token Fusion, arXiv 2403.10030"

    similarity: float = option(1.0, over=0)
    information: float = option(0.05, low=0)
    size: float = option(0.025, low=0)
    proportional: bool = True

    @property
    def weighs_attention(self) -> bool:
        return self.proportional

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.RECEIVED_ATTENTION)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return even_blocks(length, keep, blocks)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        told_BL = vision.signal("attention").float().clamp_min(1e-9)
        sizes_BL = torch.ones_like(told_BL) if vision.sizes is None else vision.sizes.float()
        own_BL = own_places(vision.valid_BL)

        def fuse(assign_BL: Tensor, from_BL: Tensor, to_BL: Tensor, n_B: Tensor) -> Tensor:
            """The `n_B` pairs that attract most, after what has joined already."""
            tokens_BLC = mean_at(vision.tokens, assign_BL, told_BL * sizes_BL)
            mean_BL = mean_at(told_BL[..., None], assign_BL, sizes_BL)[..., 0]
            given_BL = sizes_BL.masked_fill(assign_BL < 0, 0)
            size_BL = torch.zeros_like(given_BL).scatter_add_(1, assign_BL.clamp_min(0), given_BL)
            bias_BL = -self.information * mean_BL.log() - self.size * size_BL.clamp_min(1).log()
            good_BL, into_BL = best_edges(tokens_BLC, from_BL, to_BL, bias_BL / self.similarity)
            return join(good_BL, into_BL, n_B, assign_BL >= 0)

        def match(assign_BL: Tensor, alive_BL: Tensor, remove_B: Tensor) -> Tensor:
            first_BL, second_BL = deal(alive_BL)
            remove_B = torch.minimum(remove_B, alive_BL.sum(-1) // 2)
            there_BL = fuse(assign_BL, first_BL, second_BL, (remove_B + 1) // 2)
            left_BL, now_BL = first_BL & (there_BL == own_BL), follow(assign_BL, there_BL)
            return follow(there_BL, fuse(now_BL, second_BL, left_BL, remove_B // 2))

        kept_BL, assign_BL = join_down(counts, vision.valid_BL, match)
        tokens_BLC = mean_at(vision.tokens, assign_BL, told_BL * sizes_BL)
        return merged(vision, kept_BL, tokens_BLC, assign_BL)
