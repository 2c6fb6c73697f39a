"""Attention and entropy; what is pruned comes back as a few means.

B crops, L tokens, C width, P pixel values under a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.absorb import runs_of
from tokensieve.functional.counts import part_of
from tokensieve.functional.entropy import patch_entropy
from tokensieve.functional.merge import mean_at
from tokensieve.functional.pixels import pixels_under
from tokensieve.functional.places import own_places
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method, merged
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)


@dataclass(frozen=True)
class VFlowOpt(Method):
    """Rank by attention and the entropy of pixels; recycle what is pruned into a few means [1].

    Importance: the mean attention that all tokens pay to one, at the layer the VLM reads, plus
    `alpha` times the softmax over the crop of the entropy (nats) of the grey values under it. The
    pruned tokens, in their order, are cut into near-equal runs; the mean of each stands in the
    middle of its run.

    alpha: weight of the entropy.
    recycled: share of the budget for recycled tokens, at least one of them; 0: none.

    Differs from the paper: one stage, before the LLM; there the shares of several stages, in the
    LLM too, are searched for on data, by how little the last token changes. Recycled tokens count
    in the budget.

    Raises `ConfigError` for a negative `alpha` or a share outside 0 to 1, `UnsupportedError`
    without pixels, `NonFiniteError` for pixels that are not finite.

    [1] VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided
    Optimization, arXiv 2508.05211.
    """

    site: ClassVar[Site] = Site.FEATURES
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})
    paper: ClassVar[str | None] = "VFlowOpt, arXiv 2508.05211"

    alpha: float = option(1.0, low=0)
    recycled: float = option(0.1, low=0, high=1)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.RECEIVED_ATTENTION, encoder.block)}

    def importance(self, vision: VisionTokens) -> Float[Tensor, "B L"]:
        """Higher is kept first."""
        entropy_BL = patch_entropy(pixels_under(vision), vision.valid_BL)
        told_BL = entropy_BL.masked_fill(~vision.valid_BL, -torch.inf).softmax(-1)
        return vision.signal("attention").float() + self.alpha * told_BL

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        recycled_B = part_of(counts, self.recycled)
        kept_BL = topk_mask(self.importance(vision), counts - recycled_B, vision.valid_BL)
        if self.recycled == 0:
            return Reduction(kept_BL)
        pruned_BL = vision.valid_BL & ~kept_BL
        own_BL = own_places(kept_BL)
        run_BL = runs_of(pruned_BL, recycled_B)
        assign_BL = run_BL.where(pruned_BL, own_BL).masked_fill(~vision.valid_BL, -1)
        kept_BL = kept_BL | (assign_BL == own_BL)
        return merged(vision, kept_BL, mean_at(vision.tokens, assign_BL), assign_BL)
