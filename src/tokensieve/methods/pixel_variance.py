"""How much the pixels under a token vary: no network looks at all.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tokensieve.functional.pixels import by_channel, pixels_under
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Site, TextContext, VisionTokens


@dataclass(frozen=True)
class PixelVariance(ScoringMethod):
    """Keep the tokens with the largest variance of their pixels, summed over colour channels.

    Variance within a channel: tinted paper has none. Raises `UnsupportedError` without pixels.
    """

    site: ClassVar[Site] = Site.EMBEDS
    reads_tokens: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        variance_BL3: Tensor = by_channel(pixels_under(vision)).var(-1, correction=0)
        return variance_BL3.sum(-1)
