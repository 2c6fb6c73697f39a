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
from tokensieve.functional.absorb import best_of_cells
from tokensieve.functional.counts import part_of
from tokensieve.functional.entropy import patch_entropy
from tokensieve.functional.grid import cells_of_crops
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

    Importance: the mean attention paid to a token, at the layer the VLM reads, by the tokens that
    are much attended themselves, plus `alpha` times the softmax over the crop of the entropy (bits)
    of the grey values under it. The grid is cut into as many even cells as tokens are recycled;
    the pruned tokens of a cell become their mean by importance, where the most important of them
    stood. A place whose cell has none goes to the most important of the others.

    alpha: weight of the entropy.
    above: attention counts from tokens that receive more than so many times the mean; 0: from all.
    recycled: share of the budget for recycled tokens, at least one of them; 0: none.

    The paper finds these options, and the shares of several stages, for each model by a search
    that the flow to the last token guides: `tokensieve.hf.flow.search_flow`.

    Differs from paper and released code: one stage, before the LLM; in a pair with a method inside
    the LLM that ranks anew, there the first ranking is handed on. Recycled tokens count in the
    budget, which is exact; cells follow from their number, there a cell's side is searched for and
    their number follows. Grey levels are scaled to the crop's range, since pixels may be normalised
    in any way. `above` and `alpha` of 1 are choices made here; `alpha` may be negative there.
    Records of nano's first model were made with above=0, entropy in nats, and recycled tokens that
    are plain means of runs in reading order.

    Raises `ConfigError` for a negative option or a share outside 0 to 1, `UnsupportedError`
    without pixels, `NonFiniteError` for pixels that are not finite.

    [1] VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided
    Optimization, arXiv 2508.05211.
    """

    site: ClassVar[Site] = Site.FEATURES
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})
    paper: ClassVar[str | None] = "VFlowOpt, arXiv 2508.05211"

    alpha: float = option(1.0, low=0)
    above: float = option(1.0, low=0)
    recycled: float = option(0.1, low=0, high=1)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.RECEIVED_ATTENTION, encoder.block, above=self.above)}

    def importance(self, vision: VisionTokens) -> Float[Tensor, "B L"]:
        """Higher is kept first."""
        entropy_BL = patch_entropy(pixels_under(vision), vision.valid_BL)
        told_BL = entropy_BL.masked_fill(~vision.valid_BL, -torch.inf).softmax(-1)
        return vision.signal("attention").float() + self.alpha * told_BL

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        importance_BL, valid_BL = self.importance(vision), vision.valid_BL
        recycled_B = part_of(counts, self.recycled)
        kept_BL = topk_mask(importance_BL, counts - recycled_B, valid_BL)
        if self.recycled == 0:
            return Reduction(kept_BL)
        cell_BL, _ = cells_of_crops(recycled_B, valid_BL, vision.grid)
        into_BL = best_of_cells(importance_BL, cell_BL, valid_BL & ~kept_BL)
        own_BL = own_places(kept_BL)
        best_BL = into_BL == own_BL
        free_BL = valid_BL & ~kept_BL & ~best_BL
        kept_BL = kept_BL | best_BL
        kept_BL = kept_BL | topk_mask(importance_BL, counts - kept_BL.sum(-1), free_BL)
        assign_BL = own_BL.where(kept_BL, into_BL)
        tokens_BLC = mean_at(vision.tokens, assign_BL, importance_BL, rest=False)
        return merged(vision, kept_BL, tokens_BLC, assign_BL)
