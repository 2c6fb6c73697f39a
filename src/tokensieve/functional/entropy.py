"""How much the pixels under a token tell.

B crops, L tokens, P pixel values under a token, colour channel after colour channel.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokensieve.functional.pixels import by_channel

_LEVELS = 256


def patch_entropy(
    patches_BLP: Float[Tensor, "B L P"], valid_BL: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """Shannon entropy, in bits, of the grey values under each token; 0 in padding.

    Grey is the mean of the colour channels, in 256 levels from the darkest to the brightest of the
    crop's real tokens: pixels may be normalised in any way.
    """
    real_BLP = patches_BLP.float().masked_fill(~valid_BL[..., None], 0)
    grey_BLG = by_channel(real_BLP).mean(2)
    out_BL1 = ~valid_BL[..., None]
    low_B11 = grey_BLG.masked_fill(out_BL1, torch.inf).amin((1, 2), keepdim=True)
    high_B11 = grey_BLG.masked_fill(out_BL1, -torch.inf).amax((1, 2), keepdim=True)
    span_B11 = (high_B11 - low_B11).clamp_min(torch.finfo(torch.float32).tiny)
    level = ((grey_BLG - low_B11) / span_B11).masked_fill(out_BL1, 0) * _LEVELS
    level_BLG = level.long().clamp(0, _LEVELS - 1)
    hits_BLV = level.new_zeros(*level.shape[:2], _LEVELS)
    hits_BLV.scatter_add_(2, level_BLG, torch.ones_like(level))
    entropy_BL: Tensor = torch.special.entr(hits_BLV / level.shape[-1]).sum(-1)
    return entropy_BL / math.log(2)
