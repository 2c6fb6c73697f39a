"""Tokens that are no duplicates of a few pivots, inside the LLM.

B crops, L tokens, D width of the LLM, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.pivots import highest, unlike_pivots
from tokensieve.functional.text import text_attention, text_embeds
from tokensieve.methods.base import Method
from tokensieve.schedules.base import geometric
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)

_PLACES = (2 / 32,)  # layer 2 of 32


@dataclass(frozen=True)
class DartLLM(Method):
    """From layer 2 of 32 on, a few pivots and the tokens least like one of them in cosine [1].

    Pivots are the tokens of largest L1 norm of their key (of all heads, with rotary positions) in
    the layer before, visual ones and words behind the picture. The visual ones stay. In turn, the
    largest first and those of the text last, each pivot takes an equal part, rounded up, of the
    budget that is left, of the tokens that are still there, those whose hidden state has the lowest
    cosine with its own. The layer moves with the LLM's depth.

    pivots, text_pivots: how many of the picture, and of the text.

    Differs from the released code: that takes the same number for every pivot, rounded down, beside
    the visual pivots, so that its count is seldom the one asked for, and lets pivots choose in the
    order of a set; it compares hidden states behind the LLM's last norm, which is not that of this
    layer; its text pivots come from all that stands behind the picture.

    Raises `UnsupportedError` without text, `PromptError` for a prompt that has none, `ConfigError`
    for no visual pivot.

    [1] Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More
    (DART), arXiv 2502.11494.
    """

    site: ClassVar[Site] = Site.LLM
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "DART, arXiv 2502.11494"

    pivots: int = option(4, low=1, high=4096)
    text_pivots: int = option(4, low=0, high=4096)

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"keys": Signal(Kind.ALL_KEYS), "text norms": Signal(Kind.TEXT_KEY_NORMS)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        text_TD = text_embeds(text, vision)
        # a row for each visual token, zeros where there is none; all rows are alike
        norm_T = text_attention(vision, "text norms").amax((0, 1))
        pivot_PD = highest(text_TD, norm_T, self.text_pivots)
        norm_BL = torch.linalg.vector_norm(vision.signal("keys").float(), 1, dim=-1)
        kept_BL = unlike_pivots(
            vision.tokens, norm_BL, pivot_PD, counts, vision.valid_BL, self.pivots
        )
        return Reduction(kept_BL)
