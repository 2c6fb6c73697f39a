"""Tokens that take others in.

B crops, L tokens, C width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def mean_at(
    tokens_BLC: Float[Tensor, "B L C"],
    target_BL: Int[Tensor, "B L"],
    weight_BL: Float[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L C"]:
    """The weighted mean of the tokens that share a target, written at the target; others unchanged.

    Targets of -1 take part in nothing. A token that is its own only source stays bit for bit, and
    so does one whose sources weigh nothing. weight: not negative; None: all alike.
    """
    B, L, C = tokens_BLC.shape
    taken_BL = (target_BL >= 0).float()
    # filled, not multiplied: padding may hold NaN
    mass_BL = taken_BL if weight_BL is None else weight_BL.float().masked_fill(target_BL < 0, 0)
    index_BL = target_BL.clamp_min(0)
    size_BL = torch.zeros_like(taken_BL).scatter_add_(1, index_BL, taken_BL)
    total_BL = torch.zeros_like(mass_BL).scatter_add_(1, index_BL, mass_BL)
    source_BLC = tokens_BLC.float().masked_fill((target_BL < 0)[..., None], 0) * mass_BL[..., None]
    total_BLC = torch.zeros_like(source_BLC).scatter_add_(
        1, index_BL[..., None].expand(B, L, C), source_BLC
    )
    tiny = torch.finfo(torch.float32).tiny
    mean_BLC = (total_BLC / total_BL.clamp_min(tiny)[..., None]).to(tokens_BLC.dtype)
    return mean_BLC.where(((size_BL > 1) & (total_BL > 0))[..., None], tokens_BLC)
