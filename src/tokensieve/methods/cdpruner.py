"""A determinantal point process conditioned on the question.

B crops, L tokens, C width, T tokens of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.functional.cosine import cosine_along
from tokensieve.functional.dpp import greedy_dpp
from tokensieve.functional.text import text_embeds
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens

_LEAST = 1e-6  # relevance of the least relevant token, in the released code


@dataclass(frozen=True)
class CDPruner(Method):
    """Tokens both diverse and relevant to the text: greedy MAP of a conditional DPP [1].

    A token's relevance is its mean cosine with the question's tokens, scaled to [0, 1] over what
    shares a budget: the crop, or with pool="image" all crops. The kernel is
    relevance_i * cosine(i, j) * relevance_j. Past the rank of the tokens, where the determinant is
    0 whatever is added, the most relevant of the others fill the budget.

    as_released: the cosine counts with the sign reversed, as in the released code (of CLIP's
        towers, where patches of objects are farther from words), and relevance begins at
        1e-6 of its range.

    Differs from the paper: relevance there comes from CLIP's text tower where the VLM has a CLIP
    encoder; here, for every model, from the LLM's own embeddings of the text.
    Differs from the released code: that scales relevance over all crops, each with a budget of its
    own.

    Raises `UnsupportedError` without text, `PromptError` for a prompt that has none, `InputError`
    for text of another width.

    [1] CDPruner, arXiv 2506.10967.
    """

    site: ClassVar[Site] = Site.EMBEDS
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "CDPruner, arXiv 2506.10967"

    as_released: bool = False

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        text_TC = text_embeds(text, vision)
        relevance_BL = _relevance(vision, -text_TC if self.as_released else text_TC)
        if self.as_released:
            relevance_BL = relevance_BL + _LEAST
        return Reduction(greedy_dpp(vision.tokens, relevance_BL, counts, vision.valid_BL))


def _relevance(vision: VisionTokens, text_TC: Float[Tensor, "T C"]) -> Float[Tensor, "B L"]:
    """Mean cosine with the text, from 0 (the least relevant real token) to 1; all 1 if alike."""
    mean_BC = normalize(text_TC, dim=-1).mean(0).expand(len(vision.tokens), -1)
    valid_BL = vision.valid_BL
    cosine_BL = cosine_along(vision.tokens, mean_BC, valid_BL)
    low_B1 = cosine_BL.masked_fill(~valid_BL, torch.inf).amin(-1, keepdim=True)
    high_B1 = cosine_BL.masked_fill(~valid_BL, -torch.inf).amax(-1, keepdim=True)
    scaled_BL = (cosine_BL - low_B1) / (high_B1 - low_B1)
    return scaled_BL.where(high_B1 > low_B1, torch.ones_like(scaled_BL)).masked_fill(~valid_BL, 0)
