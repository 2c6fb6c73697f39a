"""Attention of the last token, early in the LLM.

B crops, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tokensieve.methods.base import ScoringMethod
from tokensieve.schedules.base import geometric
from tokensieve.types import EncoderInfo, Kind, Signal, Site, TextContext, VisionTokens

_PLACES = (2 / 32,)  # layer 2 of 32


@dataclass(frozen=True)
class FastV(ScoringMethod):
    """Before block 2 of 32, the tokens the prompt's last token attended to most in block 1 [1].

    The mean over heads of softmax attention, the row of the last token only. The paper's K = 2
    counts blocks that have run, so that its attention is of block K - 1, counted from 0. The layer
    moves with the LLM's depth. Positions are kept.

    Nothing differs from paper and released code but that the whole row is never computed.

    [1] An Image is Worth 1/2 Tokens After Layer 2, arXiv 2403.06764.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "FastV, arXiv 2403.06764"

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.LAST_ATTENTION)}

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        return vision.signal("attention").float()
