"""The pixels under each token.

B crops, L tokens of a crop, P pixel values under a token, colour channel after colour channel.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import NonFiniteError, UnsupportedError
from tokensieve.types import VisionTokens

_CHANNELS = 3


def pixels_under(vision: VisionTokens) -> Float[Tensor, "B L P"]:
    """In float32, 0 in padding.

    Raises `UnsupportedError` where no pixels were handed on, `NonFiniteError` for NaN in those of
    real tokens.
    """
    if vision.patches is None:
        raise UnsupportedError(
            "Expected the pixels under each token, which this method chooses by. Got none. Pass "
            "`pixel_values`, or use a method that needs no pixels."
        )
    real_BLP = vision.patches.float().masked_fill(~vision.valid_BL[..., None], 0)
    if not bool(torch.isfinite(real_BLP).all()):
        raise NonFiniteError("Expected finite pixels. Got NaN or Inf. Check the picture.")
    return real_BLP


def by_channel(patches_BLP: Float[Tensor, "B L P"]) -> Float[Tensor, "B L channels values"]:
    """Three channels where P allows, else one."""
    channels = _CHANNELS if patches_BLP.shape[-1] % _CHANNELS == 0 else 1
    return patches_BLP.reshape(*patches_BLP.shape[:2], channels, -1)
