"""Zero-TPrune: importance by PageRank on the attention graph, then pruning of the alike.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.attention import page_rank
from tokensieve.functional.blocks import staged_blocks
from tokensieve.functional.counts import rounded_share
from tokensieve.functional.matching import best_edges
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class ZeroTPrune(Method):
    """At a few encoder layers, drop the tokens of least PageRank, then those like a better one [1].

    Importance flows along the attention graph: a token is important if important tokens attend to
    it. The least important go first. The others are halved by importance; in the lower half those
    go whose keys are most like that of a token of the upper half.

    similar: share of the dropped tokens that go for their likeness.
    iterations: steps of the flow of importance.
    stages: layers where tokens go, evenly between first and last; the same share goes at each.

    Differs from the paper: the graph is the mean over heads (the paper filters heads by how much
    their importance varies and joins them by a root of squares), without CLS, which never goes; the
    flow takes as many steps in later layers; tokens go behind the layer.

    [1] Zero-TPrune, arXiv 2305.17328.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Zero-TPrune, arXiv 2305.17328"

    similar: float = option(0.5, low=0, high=1)
    iterations: int = option(30, low=1, high=1000)
    stages: int = option(3, low=1, high=256)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.ATTENTION_MAP), "keys": Signal(Kind.KEYS)}

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        return staged_blocks(length, keep, blocks, self.stages)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        valid_BL = vision.valid_BL
        rank_BL = page_rank(vision.signal("attention"), valid_BL, self.iterations)
        drop_B = valid_BL.sum(-1) - counts
        alike_B = torch.minimum(
            rounded_share(drop_B, self.similar, "down"), counts
        )  # at most the lower half
        important_BL = topk_mask(rank_BL, counts + alike_B, valid_BL)
        better_BL = topk_mask(rank_BL, (counts + alike_B + 1) // 2, important_BL)
        good_BL, _ = best_edges(vision.signal("keys"), important_BL & ~better_BL, better_BL)
        return Reduction(important_BL & ~topk_mask(good_BL, alike_B, good_BL > -torch.inf))
