"""A few tokens less at each layer of the LLM's middle.

B crops, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.fields import option
from tokensieve.functional.text import text_attention
from tokensieve.methods.base import ScoringMethod
from tokensieve.schedules.base import linear
from tokensieve.types import EncoderInfo, Kind, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class AIMLLM(ScoringMethod):
    """From half the depth on, the share of tokens falls by the same step at every layer; those of
    highest PageRank in the layer before stay: the second stage of AIM [1].

    PageRank is one step from an even start: of N tokens, text among them, token j gets the sum of
    attention A(i, j) / N over all tokens i, A the mean over heads. That takes every row of a
    layer's attention, some at a time; FlashAttention stays on.

    first, last: between which parts of the depth it falls; `keep` is what remains from then on. The
        paper's layers 14 and 22 of 28.
    voters: "all", as the paper; "text": only the words behind the picture vote, which is cheaper.

    Differs from the paper: it ends at no tokens, here at `keep`. Its released code for this stage
    could not be read.
    Records of nano's first model were made with voters="text".

    Raises `ConfigError` unless 0 < first <= last < 1.

    [1] AIM: Adaptive Inference of Multi-Modal LLMs, arXiv 2412.03248.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "AIM, arXiv 2412.03248"

    first: float = 14 / 28
    last: float = 22 / 28
    voters: str = option("all", choices=("all", "text"))

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.last < 1:
            raise ConfigError(
                f"Expected 0 < first <= last < 1, parts of the depth. Got {self.first} and "
                f"{self.last}."
            )

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return linear(depth, self.first, self.last, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        all_vote = self.voters == "all"
        return {"attention": Signal(Kind.RECEIVED_ATTENTION if all_vote else Kind.TEXT_ATTENTION)}

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        if self.voters == "all":
            return vision.signal("attention").float()
        return text_attention(vision).mean(-1)
