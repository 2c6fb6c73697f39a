"""Tokens that are no duplicates of a few pivots, before the LLM.

B crops, L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.pivots import highest, unlike_pivots
from tokensieve.functional.text import text_embeds
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Dart(Method):
    """Keep a few pivots, and the tokens least like one of them in cosine: DART as engines ship it,
    on embeddings [1].

    Pivots are the tokens of largest L1 norm, visual ones and ones of the question. The visual ones
    stay. In turn, the largest first and those of the text last, each pivot takes its part of the
    budget (what is left over the pivots to come, rounded up) of the tokens that are still there,
    those of lowest cosine with it.

    pivots, text_pivots: how many of the picture, and of the text.

    This is the form of TensorRT Edge-LLM (`--visualPrune`), budgets by crop. Differs from it: its
    text pivots come from all of the prompt's text, here from the question. The paper's form, by the
    keys of an LLM layer, is the method "dart-llm".

    Raises `UnsupportedError` without text, `PromptError` for a prompt that has none, `InputError`
    for text of another width, `ConfigError` for no visual pivot.

    [1] Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More
    (DART), arXiv 2502.11494.
    """

    site: ClassVar[Site] = Site.EMBEDS
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "DART, arXiv 2502.11494"

    pivots: int = option(4, low=1, high=4096)
    text_pivots: int = option(4, low=0, high=4096)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        text_TC = text_embeds(text, vision)
        pivot_PC = highest(text_TC, text_TC.abs().sum(-1), self.text_pivots)
        norm_BL = torch.linalg.vector_norm(vision.tokens, 1, dim=-1, dtype=torch.float32)
        kept_BL = unlike_pivots(
            vision.tokens, norm_BL, pivot_PC, counts, vision.valid_BL, self.pivots
        )
        return Reduction(kept_BL)
