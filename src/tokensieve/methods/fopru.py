"""Attention received, token by token or row by row.

B crops, L tokens, H x W grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)

STRATEGIES = ("rank", "row")


@dataclass(frozen=True)
class FoPru(ScoringMethod):
    """Keep the most significant tokens: those that all tokens attend to most, on average [1].

    strategy: "rank" takes them one by one; "row" takes whole rows of the grid, those of the
        highest mean significance. Without a grid both rank.

    Attention is that of the block the VLM reads (22 of CLIP's 24, counted from 0), mean over heads.

    Differs from the paper: a budget that is no multiple of a row is spent in full, on the most
    significant tokens of the next row. Its released code could not be read.

    Raises `UnknownNameError` for another strategy.

    [1] FoPru: Focal Pruning for Efficient Large Vision-Language Models, arXiv 2411.14164.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "FoPru, arXiv 2411.14164"

    strategy: str = option("rank", choices=STRATEGIES)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.RECEIVED_ATTENTION, encoder.block)}

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        """Significance: of a token, or of its row."""
        token_BL = vision.signal("attention").float()
        if self.strategy == "rank" or vision.grid is None:
            return token_BL
        token_BHW = token_BL.masked_fill(~vision.valid_BL, 0).view(-1, *vision.grid)
        size_BH1 = vision.valid_BL.view(-1, *vision.grid).sum(-1, keepdim=True).clamp_min(1)
        row_BH1 = token_BHW.sum(-1, keepdim=True) / size_BH1
        return row_BH1.expand_as(token_BHW).flatten(1)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        within_BL = vision.signal("attention")  # orders the row of which only a part fits
        return Reduction(topk_mask(self.scores(vision), counts, vision.valid_BL, within_BL))
