"""Attention of the last token, in three steps through the LLM.

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

_PLACES = (8 / 32, 16 / 32, 24 / 32)


@dataclass(frozen=True)
class PyramidDrop(ScoringMethod):
    """Before blocks 8, 16 and 24 of 32, the same share of the survivors: those to which the
    instruction's last token would attend most in that block [1].

    The queries and keys are those of the block at the cut, on what reaches it; softmax over all
    that the token sees, mean over heads. The paper's layers 8, 16 and 24 are these blocks, counted
    from 0. `keep` is what remains after the last step, so the shares are its cube root, that
    squared, and itself; the paper's .5, .25, .125 is keep=0.125.

    Differs from the released code: positions are kept, not renumbered.
    Records of nano's first model were made with the attention of the block before.

    [1] PyramidDrop, arXiv 2410.17247.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "PyramidDrop, arXiv 2410.17247"

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.LAST_ATTENTION, ahead=True)}

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        return vision.signal("attention").float()
