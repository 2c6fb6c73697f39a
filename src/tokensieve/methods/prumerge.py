"""Tokens that stand out in the attention of CLS, each with its neighbours merged in.

B crops, L tokens, C width, K width of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.counts import outlier_counts
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

COUNTS = ("fixed", "outliers")


@dataclass(frozen=True)
class PruMerge(Method):
    """Keep what CLS attends to most; each kept token takes in those most like it [1].

    To a kept token is added the sum of the `neighbours` others, kept or not, whose keys (of all
    heads) are most alike in cosine, each times the attention that CLS pays it. A token may be taken
    in by several, or by none: there is no assignment to show. Where there is no CLS (SigLIP,
    Qwen-VL): the mean attention of all tokens to each.

    counts: "fixed" keeps as many as asked. "outliers" keeps those whose attention lies more than
        1.5 interquartile ranges above the third quartile, as the paper does: one or more, and no
        more than asked; all where all are asked for. The paper's outliers are the tokens of highest
        attention, so with "fixed" the budget cuts, or prolongs, the same ranking.
    neighbours: how many each kept token takes in.
    averaged: a kept token becomes the mean of itself and its neighbours by attention, so that
        tokens keep their size, which a VLM that was not trained with merged tokens may want.
    as_released: attention and keys of the encoder's last block, which the VLM does not read, the
        attention of all heads as one of the full width; and the last token of the budget is the sum
        of all that are not kept, by attention, where the most attended of them stood.

    Differs from the paper: its printed sum is of the neighbours alone (from memory: the paper could
    not be looked at again); in the released code, and here, it is added to the kept token. Heads
    are averaged, the paper writes attention for one.
    Differs from the released code, as_released=True: a budget, unless counts="outliers"; the token
    of the others counts in it, and stands at a place of its own instead of behind all.
    Records of nano's first model were made with averaged=True, neighbours among pruned tokens alone
    and the mean of heads' keys.

    Raises `UnknownNameError` for other `counts`, `ConfigError` for fewer than one neighbour.

    [1] LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models,
    arXiv 2403.15388.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "LLaVA-PruMerge, arXiv 2403.15388"

    counts: str = option("fixed", choices=COUNTS)
    neighbours: int = option(32, low=1, high=2**20)
    averaged: bool = False
    as_released: bool = False

    def __post_init__(self) -> None:
        # An instance says of itself what its class says of the default.
        object.__setattr__(self, "exact", self.counts == "fixed")

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        kind = Kind.CLS_UNSPLIT if self.as_released else Kind.CLS_ATTENTION
        block = encoder.depth - 1 if self.as_released else encoder.block
        return {"attention": Signal(kind, block), "keys": Signal(Kind.ALL_KEYS, block)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        attention_BL, valid_BL = vision.signal("attention").float(), vision.valid_BL
        whole_B = counts >= valid_BL.sum(-1)
        rest_B = (self.as_released & ~whole_B & (counts > 1)).long()
        if self.counts == "outliers":
            found_B = outlier_counts(attention_BL, valid_BL).clamp_min(1)
            counts = counts.where(whole_B, torch.minimum(found_B + rest_B, counts))
        kept_BL = topk_mask(attention_BL, counts - rest_B, valid_BL)
        return absorbed(vision, kept_BL, self.neighbours, averaged=self.averaged, rest_B=rest_B)
