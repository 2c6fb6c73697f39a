"""Tokens that take others in.

B crops, L tokens, C width, K width of what is compared.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

_PART = 1024  # tokens compared with all others at a time


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


def spread_to(
    tokens_BLC: Float[Tensor, "B L C"],
    keys_BLK: Float[Tensor, "B L K"],
    from_BL: Bool[Tensor, "B L"],
    to_BL: Bool[Tensor, "B L"],
    temperature: float,
) -> Float[Tensor, "B L C"]:
    """Tokens of `to` with those of `from` shared among them; others unchanged.

    Each of `from` is shared by a softmax, over `to`, of the cosine of keys over the temperature. A
    new token is the mean of itself, with weight 1, and its shares. Tokens of a crop without any in
    `from` stay bit for bit.
    """
    keys_BLK = normalize(keys_BLK.float().masked_fill(~(from_BL | to_BL)[..., None], 0), dim=-1)
    source_BLC = tokens_BLC.float().masked_fill(~from_BL[..., None], 0)
    sums_BLC, mass_BL = torch.zeros_like(source_BLC), torch.zeros_like(keys_BLK[..., 0])
    for start in range(0, from_BL.shape[1], _PART):
        part = slice(start, start + _PART)
        cosine_BPL = keys_BLK[:, part] @ keys_BLK.mT / temperature
        share_BPL = cosine_BPL.masked_fill(~to_BL[:, None], -torch.inf).softmax(-1)
        share_BPL = share_BPL.masked_fill(~(from_BL[:, part, None] & to_BL[:, None]), 0)
        sums_BLC += share_BPL.mT @ source_BLC[:, part]
        mass_BL += share_BPL.sum(1)
    own_BLC = tokens_BLC.float().masked_fill(~to_BL[..., None], 0)
    new_BLC = ((own_BLC + sums_BLC) / (1 + mass_BL)[..., None]).to(tokens_BLC.dtype)
    changed_BL = to_BL & from_BL.any(-1, keepdim=True)
    return new_BLC.where(changed_BL[..., None], tokens_BLC)
