"""A few tokens less at each layer of the LLM's middle.

B crops, L tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.functional.text import text_attention
from tokensieve.methods.base import ScoringMethod
from tokensieve.schedules.base import linear
from tokensieve.types import EncoderInfo, Kind, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class AIMLLM(ScoringMethod):
    """From half the depth on, the share of tokens falls by the same step at every layer; those the
    text attends to most in the layer before stay: the second stage of AIM [1].

    first, last: between which parts of the depth it falls; `keep` is what remains from then on.

    Differs from the paper: it ranks by one step of PageRank over the attention of all tokens,
    which would need every row of attention; here the rows of text tokens vote. It ends at no
    tokens, here at `keep`.

    Raises `ConfigError` unless 0 < first <= last < 1.

    [1] AIM: Adaptive Inference of Multi-Modal LLMs, arXiv 2412.03248.
    """

    site: ClassVar[Site] = Site.LLM
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "AIM, arXiv 2412.03248"

    first: float = 14 / 28
    last: float = 22 / 28

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.last < 1:
            raise ConfigError(
                f"Expected 0 < first <= last < 1, parts of the depth. Got {self.first} and "
                f"{self.last}."
            )

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return linear(depth, self.first, self.last, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.TEXT_ATTENTION)}

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        return text_attention(vision).mean(-1)
