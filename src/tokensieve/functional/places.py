"""Where the tokens of a mask stand.

B crops, L tokens, T tokens of a mask.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def positions(mask_BL: Bool[Tensor, "B L"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The positions of each row's True values in order, and which of these places are taken.

    T is what the fullest row has; a row's other places hold positions outside the mask.
    """
    counts_B = mask_BL.sum(-1)
    most = int(counts_B.max()) if mask_BL.numel() else 0
    index_N = mask_BL.nonzero()[:, -1]
    if len(index_N) == most * len(mask_BL):  # as many in each row
        index_BT = index_N.view(len(mask_BL), most)
        return index_BT, torch.ones_like(index_BT, dtype=torch.bool)
    order_BL = (~mask_BL).byte().argsort(dim=-1, stable=True)
    place_T = torch.arange(most, device=mask_BL.device)
    return order_BL[:, :most], place_T < counts_B[:, None]


def own_places(mask_BL: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Each token's own position."""
    return torch.arange(mask_BL.shape[1], device=mask_BL.device).expand(mask_BL.shape)
