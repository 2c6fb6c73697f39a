"""Zero-TPrune: importance by PageRank on the attention graph, then pruning of the alike.

B crops, L tokens, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.attention import page_rank, telling_heads
from tokensieve.functional.blocks import staged_blocks
from tokensieve.functional.counts import rounded_share
from tokensieve.functional.matching import best_edges
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens

ORDERS = ("alike", "unimportant")


@dataclass(frozen=True)
class ZeroTPrune(Method):
    """At a few encoder layers, drop tokens like a better one, and those of least PageRank [1].

    Importance flows along the attention graph of each head: a token is important if important
    tokens attend to it. Heads whose importances vary too little or too much are left out; over the
    others a token has the root of the mean of squares. The tokens are ranked by one step of that
    and halved; in the lower half those go whose keys are most like that of a token of the upper
    half. Among those left importance is found anew, and the least important go.

    similar: share of the dropped tokens that go for their likeness.
    first: "unimportant": importance first, by which the rest is halved; the paper's simpler order.
    iterations: steps of the flow of importance.
    low, high: bounds of the variance of a head's importances, scaled to a mean of 1; if no head is
        within them, all count.
    stages: layers where tokens go, evenly between first and last; the same share goes at each.

    Paper and code could not be looked at when this was written: order, bounds (.01, .7) and root of
    squares are from memory, the scale of the variance is a choice made here.
    Differs from the paper: CLS, which never goes, is left out of the graph; the flow takes as many
    steps in later layers, there fewer; tokens go behind the layer.
    Records of nano's first model were made with first="unimportant" and the mean over heads.

    [1] Zero-TPrune, arXiv 2305.17328.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Zero-TPrune, arXiv 2305.17328"

    similar: float = option(0.5, low=0, high=1)
    first: str = option("alike", choices=ORDERS)
    iterations: int = option(30, low=1, high=1000)
    low: float = option(0.01, low=0)
    high: float = option(0.7, low=0)
    stages: int = option(3, low=1, high=256)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.HEAD_MAPS), "keys": Signal(Kind.KEYS)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return staged_blocks(length, keep, blocks, self.stages)

    def importance(
        self, vision: VisionTokens, left_BL: Tensor, iterations: int
    ) -> Float[Tensor, "B L"]:
        """Of the tokens left, in the graph of these alone."""
        maps_BLLH = vision.signal("attention")
        B, L, _, H = maps_BLLH.shape
        maps_NLL = maps_BLLH.permute(0, 3, 1, 2).flatten(0, 1)
        rank_NL = page_rank(maps_NLL, left_BL.repeat_interleave(H, 0), iterations)
        return telling_heads(rank_NL.view(B, H, L), left_BL, self.low, self.high)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        valid_BL = vision.valid_BL
        alike_B = rounded_share(valid_BL.sum(-1) - counts, self.similar, "down")
        if self.first == "alike":
            vote_BL = self.importance(vision, valid_BL, 1)
            left_BL = self._unlike(vision, vote_BL, alike_B, valid_BL)
            rank_BL = self.importance(vision, left_BL, self.iterations)
            return Reduction(topk_mask(rank_BL, counts, left_BL))
        alike_B = alike_B.minimum(counts)  # at most the lower half
        rank_BL = self.importance(vision, valid_BL, self.iterations)
        left_BL = topk_mask(rank_BL, counts + alike_B, valid_BL)
        return Reduction(self._unlike(vision, rank_BL, alike_B, left_BL))

    def _unlike(
        self, vision: VisionTokens, rank_BL: Tensor, alike_B: Tensor, left_BL: Tensor
    ) -> Tensor:
        """Those left without `alike_B[b]` of the lower half by rank that are most like a token of
        the upper."""
        half_B = (left_BL.sum(-1) + 1) // 2
        better_BL = topk_mask(rank_BL, half_B, left_BL)
        good_BL, _ = best_edges(vision.signal("keys"), left_BL & ~better_BL, better_BL)
        alike_B = alike_B.minimum(left_BL.sum(-1) - half_B)
        return left_BL & ~topk_mask(good_BL, alike_B, left_BL & ~better_BL)
