"""Tokens that stand out, an even grid beside them, each with its neighbours merged in.

B crops, L tokens, C width, K width of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.counts import part_of
from tokensieve.functional.grid import cells_of_crops
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method, absorbed
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
class PruMergePlus(Method):
    """As "prumerge", with a part of the budget on an even grid [1].

    The grid is cut into even cells, the token at each centre stays; the rest of the budget goes to
    those of the other tokens that CLS attends to most. To each kept token is added what "prumerge"
    adds. Without a grid the cells are runs of tokens. Where there is no CLS (SigLIP, Qwen-VL): the
    mean attention of all tokens to each.

    uniform: share of the budget on the even grid. The paper keeps about 5.5 % of the tokens as
        outliers and 25 % in all, so three quarters.
    neighbours: how many each kept token takes in.
    averaged, as_released: as of "prumerge"; with as_released too the even grid is by cells.

    Differs from the paper: a budget decides the counts, there outliers do (the method "prumerge"
    with counts="outliers"); a token on the grid that is an outlier too frees a place for the next.
    Differs from the released code: there the even tokens are every so-many-th in reading order,
    three for every outlier.
    Records of nano's first model were made as "prumerge" says.

    Raises `ConfigError` for a share outside 0 to 1 or fewer than one neighbour.

    [1] LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models,
    arXiv 2403.15388.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "LLaVA-PruMerge+, arXiv 2403.15388"

    uniform: float = option(0.75, low=0, high=1)
    neighbours: int = option(32, low=1, high=2**20)
    averaged: bool = False
    as_released: bool = False

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        kind = Kind.CLS_UNSPLIT if self.as_released else Kind.CLS_ATTENTION
        block = encoder.depth - 1 if self.as_released else encoder.block
        return {"attention": Signal(kind, block), "keys": Signal(Kind.ALL_KEYS, block)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        attention_BL, valid_BL = vision.signal("attention").float(), vision.valid_BL
        rest_B = (self.as_released & (counts < valid_BL.sum(-1)) & (counts > 1)).long()
        even_B = part_of(counts, self.uniform)
        _, even_BL = cells_of_crops(even_B, valid_BL, vision.grid)
        first_BL = attention_BL.masked_fill(even_BL, torch.inf)
        kept_BL = topk_mask(first_BL, counts - rest_B, valid_BL)
        return absorbed(vision, kept_BL, self.neighbours, averaged=self.averaged, rest_B=rest_B)
