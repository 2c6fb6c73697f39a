"""Efficient video sampling: what looks as it did one frame ago is not read again.

F frames of a video, L tokens of a frame, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Site, TextContext, VisionTokens

FIRST = 3.0  # above any distance: a cosine distance is at most 2


@dataclass(frozen=True)
class EVS(ScoringMethod):
    """Keep the first frame, then the tokens least like the same place one frame before [1].

    Tokens are ranked by their cosine distance over the whole video; more of the budget goes to
    frames in which more changes. A picture is a first frame.

    Differs from the released code: a budget below one frame's worth is held, not raised to it; the
    tokens of the first frame are then spread evenly over it.

    [1] Efficient Video Sampling, arXiv 2510.14624.
    """

    site: ClassVar[Site] = Site.EMBEDS
    across_frames: ClassVar[bool] = True
    paper: ClassVar[str | None] = "Efficient Video Sampling, arXiv 2510.14624"

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "F L"]:
        vision.require_finite(f"the site '{self.site}'")
        tokens_FLC = vision.tokens.float()
        scores_FL = FIRST + spread_evenly(vision.valid_BL)
        if not vision.frames:
            return scores_FL
        changed: Tensor = 1 - cosine_similarity(tokens_FLC[1:], tokens_FLC[:-1], dim=-1)
        return torch.cat([scores_FL[:1], changed])


def spread_evenly(valid_FL: Bool[Tensor, "F L"]) -> Float[Tensor, "F L"]:
    """Numbers in (0, 1] whose k largest lie evenly over a frame's real tokens, for every k: one
    less the bits of a token's number read backwards."""
    places_FL = (valid_FL.cumsum(-1) - 1).clamp(min=0)
    bits = max(1, (valid_FL.shape[-1] - 1).bit_length())
    backwards = torch.zeros_like(places_FL)
    for bit in range(bits):
        backwards |= ((places_FL >> bit) & 1) << (bits - 1 - bit)
    even: Tensor = 1 - backwards.float() / 2**bits
    return even
