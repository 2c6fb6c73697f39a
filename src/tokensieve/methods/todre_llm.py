"""All visual tokens leave the LLM once the text no longer asks for them.

B crops, L tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.text import text_attention
from tokensieve.methods.base import Method, keep_all
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class ToDRELLM(Method):
    """In the second half of the LLM, at the first layer before which a crop is no longer relevant
    to the task, all of it leaves: the second stage of ToDRE [1].

    Relevance is the share of its attention that a text token spends on the crop, mean over the
    text tokens that stand behind it.

    threshold: below this relevance a crop leaves. `keep` below 1 says no more than that it may.

    Of the paper no more than its abstracts could be read, nor its released code: that all visual
    tokens leave late in the decoder, once text has taken over what they say ("information
    migration"), by cross-modal attention. That relevance is a share of attention held against a
    fixed threshold, from half the depth on, is our reading. A budget comes from a method before the
    LLM, as in ("todre", "todre-llm").

    Raises `ConfigError` for a threshold outside [0, 1].

    [1] ToDRE, arXiv 2505.18757.
    """

    site: ClassVar[Site] = Site.LLM
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    budgeted: ClassVar[bool] = False
    paper: ClassVar[str | None] = "ToDRE, arXiv 2505.18757"

    threshold: float = option(0.1, low=0, high=1)

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return dict.fromkeys(range(max(1, depth // 2), depth), keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.TEXT_ATTENTION)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        spent_BT = text_attention(vision).masked_fill(~vision.valid_BL[..., None], 0).sum(1)
        behind_BT = spent_BT > 0
        relevance_B = spent_BT.sum(-1) / behind_BT.sum(-1).clamp(1)
        stays_B = (counts >= vision.valid_BL.sum(-1)) | (relevance_B >= self.threshold)
        return Reduction(keep_all(vision) & stays_B[:, None])
