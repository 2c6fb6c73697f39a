"""Small windows of a grid whose tokens are alike, merged.

B crops, L tokens, C width, W windows of a crop.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def window_of(
    grid: tuple[int, int] | None, valid_BL: Bool[Tensor, "B L"], side: int
) -> Int[Tensor, "B L"]:
    """The window, `side` x `side` or cut off at the grid's edge, of each token.

    Without a grid windows are runs of `side` * `side` real tokens.
    """
    if grid is None:
        return ((valid_BL.long().cumsum(-1) - 1) // side**2).clamp_min(0)
    row, column = (torch.arange(n, device=valid_BL.device) // side for n in grid)
    across = -(-grid[1] // side)
    return (row[:, None] * across + column).flatten().expand_as(valid_BL)


def merge_windows(
    tokens_BLC: Float[Tensor, "B L C"],
    window_BL: Int[Tensor, "B L"],
    free_BL: Bool[Tensor, "B L"],
    worth_BL: Float[Tensor, "B L"],
    excess_B: Int[Tensor, "B"],
    threshold: float,
) -> Int[Tensor, "B L"]:
    """The token each one is merged into, itself for most.

    Only `free_BL` tokens merge: those of a window whose mean cosine over pairs reaches `threshold`,
    into the one of highest worth. The most alike windows go first, until `excess_B[b]` tokens of a
    crop are gone; the last window gives only as many as are needed, those of least worth.
    """
    B, L, _ = tokens_BLC.shape
    W = int(window_BL.max()) + 1
    group_BL = window_BL.masked_fill(~free_BL, W)  # one more, for tokens that stay out
    size_BW = torch.zeros(B, W + 1, device=group_BL.device, dtype=torch.long)
    size_BW.scatter_add_(1, group_BL, torch.ones_like(group_BL))
    gone_BW = _gone(tokens_BLC, group_BL, size_BW, free_BL, excess_B, threshold)
    by_worth = worth_BL.float().argsort(dim=-1, descending=True, stable=True)
    within = group_BL.gather(1, by_worth).argsort(dim=-1, stable=True)
    order_BL = by_worth.gather(1, within)  # window after window, the worthiest first
    start_BW = size_BW.cumsum(-1) - size_BW
    sorted_BL = group_BL.gather(1, order_BL)
    place_BL = torch.arange(L, device=order_BL.device) - start_BW.gather(1, sorted_BL)
    merges_BL = place_BL >= (size_BW - gone_BW).gather(1, sorted_BL)
    leader_BL = order_BL.gather(1, start_BW.gather(1, sorted_BL))
    return torch.empty_like(order_BL).scatter_(1, order_BL, leader_BL.where(merges_BL, order_BL))


def _gone(
    tokens_BLC: Tensor, group_BL: Tensor, size_BW: Tensor, free_BL: Tensor, excess_B: Tensor,
    threshold: float,
) -> Int[Tensor, "B W"]:  # fmt: skip
    """How many tokens each window loses."""
    unit_BLC = normalize(tokens_BLC.float().masked_fill(~free_BL[..., None], 0), dim=-1)
    sum_BWC = unit_BLC.new_zeros(*size_BW.shape, unit_BLC.shape[-1])
    sum_BWC.scatter_add_(1, group_BL[..., None].expand_as(unit_BLC), unit_BLC)
    norm_BL = unit_BLC.square().sum(-1)  # 1, or 0 for a token of zeros
    alone_BW = norm_BL.new_zeros(size_BW.shape).scatter_add_(1, group_BL, norm_BL)
    pairs_BW = (size_BW * (size_BW - 1)).clamp_min(1)
    alike_BW = (sum_BWC.square().sum(-1) - alone_BW) / pairs_BW
    able_BW = (alike_BW >= threshold) & (size_BW > 1)
    able_BW[:, -1] = False
    order_BW = alike_BW.masked_fill(~able_BW, -torch.inf).argsort(
        dim=-1, descending=True, stable=True
    )
    most_BW = ((size_BW - 1) * able_BW).gather(1, order_BW)
    before_BW = most_BW.cumsum(-1) - most_BW
    gone_BW = torch.minimum(most_BW, (excess_B[:, None] - before_BW).clamp_min(0))
    return torch.empty_like(gone_BW).scatter_(1, order_BW, gone_BW)
