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
from tokensieve.functional.absorb import absorb_nearest
from tokensieve.functional.counts import outlier_counts
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

COUNTS = ("fixed", "outliers")


@dataclass(frozen=True)
class PruMerge(Method):
    """Keep what CLS attends to most; each kept token takes in its nearest pruned ones [1].

    A kept token becomes the mean of itself and the `neighbours` pruned tokens whose keys are most
    alike in cosine, weighted by attention. A pruned token may be taken in by several, or by none:
    there is no assignment to show. Where there is no CLS (SigLIP, Qwen-VL): the mean attention of
    all tokens to each.

    counts: "fixed" keeps as many as asked. "outliers" keeps those whose attention lies more than
        1.5 interquartile ranges above the third quartile, as the paper does: one or more, and no
        more than asked; all where all are asked for. The paper's outliers are the tokens of highest
        attention, so with "fixed" the budget cuts, or prolongs, the same ranking.
    neighbours: how many each kept token takes in.

    Differs from the released code: that seeks neighbours among kept tokens too, and adds their sum
    by attention to the kept token as it is; here weights sum to 1, so that tokens keep their size.

    Raises `UnknownNameError` for other `counts`, `ConfigError` for fewer than one neighbour.

    [1] LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models,
    arXiv 2403.15388.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "LLaVA-PruMerge, arXiv 2403.15388"

    counts: str = option("fixed", choices=COUNTS)
    neighbours: int = option(32, low=1, high=2**20)

    def __post_init__(self) -> None:
        # An instance says of itself what its class says of the default.
        object.__setattr__(self, "exact", self.counts == "fixed")

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {
            "attention": Signal(Kind.CLS_ATTENTION, encoder.block),
            "keys": Signal(Kind.KEYS, encoder.block),
        }

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        attention_BL, valid_BL = vision.signal("attention"), vision.valid_BL
        if self.counts == "outliers":
            found_B = torch.minimum(outlier_counts(attention_BL, valid_BL).clamp_min(1), counts)
            counts = counts.where(counts >= valid_BL.sum(-1), found_B)
        kept_BL = topk_mask(attention_BL, counts, valid_BL)
        tokens_BLC = absorb_nearest(
            vision.tokens, vision.signal("keys"), attention_BL, kept_BL, valid_BL, self.neighbours
        )
        return merged(vision, kept_BL, tokens_BLC)
