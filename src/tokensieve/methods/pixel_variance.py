"""How much the pixels under a token vary: no network looks at all.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import NonFiniteError, UnsupportedError
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Site, TextContext, VisionTokens

_CHANNELS = 3


@dataclass(frozen=True)
class PixelVariance(ScoringMethod):
    """Keep the tokens with the largest variance of their pixels, summed over colour channels.

    Variance within a channel: tinted paper has none. Raises `UnsupportedError` without pixels.
    """

    site: ClassVar[Site] = Site.EMBEDS
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        if vision.patches is None:
            raise UnsupportedError(
                "Expected the pixels under each token, for 'pixel-variance'. Got none. Pass "
                "`pixel_values`, or use a method that needs no pixels."
            )
        patches = vision.patches.float()
        if not bool(torch.isfinite(patches).all()):
            raise NonFiniteError("Expected finite pixels. Got NaN or Inf. Check the picture.")
        channels = _CHANNELS if patches.shape[-1] % _CHANNELS == 0 else 1
        by_channel = patches.reshape(*patches.shape[:2], channels, -1)
        return by_channel.var(-1, correction=0).sum(-1)
