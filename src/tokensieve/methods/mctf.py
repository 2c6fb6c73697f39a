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
    the attention a token would receive in the next layer, were nothing fused (one step ahead), s
    the number of patches it stands for. Tokens are dealt in turn to two halves, CLS first where
    there is one; half of the pairs (rounded down) send a token of the first to the second, then the
    others one of the second to what is left of the first, by the attraction all had before. A fused
    token is the mean of its sources by a times s. CLS joins nothing and is not joined.

    similarity, information, size: those exponents; 0 leaves a criterion out. 1, 1/20 and 1/40 are
        the released code's (from memory: its settings for DeiT).
    proportional: later layers add log s to a token's attention logits.
    ahead: False: attention of the layer just run, the paper's ablation.

    Differs from paper and released code: the next layer attends anew to what is left (the released
    code's mode 2, "precise"), there the map of the step ahead is fused with the tokens and used
    once more, which saves its queries and keys. There is a step behind every layer, the last that
    the VLM reads included; the released code has none before the first layers. Tokens are dealt in
    the order of the picture, there the two halves stand one behind the other after a step.
    Without the training for consistency under reduction that the paper adds.
    Records of nano's first model were made with ahead=False, CLS not dealt, and the second way by
    the attraction after the first.

    Raises `BudgetError` where halving at every layer does not get down to the budget.

    [1] Multi-criteria Token Fusion with One-step-ahead Attention, arXiv 2403.10030.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Multi-criteria Token Fusion, arXiv 2403.10030"

    similarity: float = option(1.0, over=0)
    information: float = option(0.05, low=0)
    size: float = option(0.025, low=0)
    proportional: bool = True
    ahead: bool = True

    @property
    def weighs_attention(self) -> bool:
        return self.proportional

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.RECEIVED_ATTENTION, ahead=self.ahead)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return even_blocks(length, keep, blocks)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        told_BL = vision.signal("attention").float().clamp_min(1e-9)
        sizes_BL = torch.ones_like(told_BL) if vision.sizes is None else vision.sizes.float()
        own_BL = own_places(vision.valid_BL)

        def match(assign_BL: Tensor, alive_BL: Tensor, remove_B: Tensor) -> Tensor:
            """Half of the pairs one way, half the other, by what all were before either."""
            tokens_BLC = mean_at(vision.tokens, assign_BL, told_BL * sizes_BL)
            mean_BL = mean_at(told_BL[..., None], assign_BL, sizes_BL)[..., 0]
            given_BL = sizes_BL.masked_fill(assign_BL < 0, 0)
            size_BL = torch.zeros_like(given_BL).scatter_add_(1, assign_BL.clamp_min(0), given_BL)
            bias_BL = -self.information * mean_BL.log() - self.size * size_BL.clamp_min(1).log()

            def send(from_BL: Tensor, to_BL: Tensor, n_B: Tensor) -> Tensor:
                edges = best_edges(tokens_BLC, from_BL, to_BL, bias_BL / self.similarity)
                return join(*edges, n_B, alive_BL)

            first_BL, second_BL = deal(alive_BL, vision.cls)
            remove_B = torch.minimum(remove_B, alive_BL.sum(-1) // 2)
            there_BL = send(first_BL, second_BL, remove_B // 2)
            left_BL = first_BL & (there_BL == own_BL)
            return follow(there_BL, send(second_BL, left_BL, (remove_B + 1) // 2))

        kept_BL, assign_BL = join_down(counts, vision.valid_BL, match)
        tokens_BLC = mean_at(vision.tokens, assign_BL, told_BL * sizes_BL, rest=False)
        return merged(vision, kept_BL, tokens_BLC, assign_BL)
