"""Soft clusters of tokens that lie near each other.

L tokens of one crop, C width, k clusters.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def soft_clusters(
    tokens_LC: Float[Tensor, "L C"], near_Lk: Bool[Tensor, "L k"], first_kC: Float[Tensor, "k C"],
    sharpness: float, rounds: int,
) -> Float[Tensor, "k C"]:  # fmt: skip
    """Centres after some rounds of soft k-means, each token shared among the centres near it.

    A token's share in a centre is exp(-sharpness * |token - centre|^2), divided by the sum of that
    over the centres near it; a centre becomes the mean of all tokens by their shares.
    """
    centre_kC = first_kC
    far_Lk = ~near_Lk
    for _ in range(rounds):
        square_Lk = torch.cdist(tokens_LC, centre_kC).square()
        share_Lk = (-sharpness * square_Lk).masked_fill(far_Lk, -torch.inf).softmax(-1)
        mass_k1 = share_Lk.sum(0)[:, None]
        centre_kC = torch.where(mass_k1 > 0, share_Lk.mT @ tokens_LC / mass_k1, centre_kC)
    return centre_kC


def cells_near(
    cell_L: Int[Tensor, "L"], grid: tuple[int, int], count: int, window: int
) -> Bool[Tensor, "L k"]:
    """Whether each of `count` cells is among the window^2 nearest to each token of a grid.

    cell: the cell a token lies in, from 0. Between middles, in tokens; the earlier cell on a tie.
    A token's own cell is always among them.
    """
    rows, columns = grid
    place_L2 = torch.stack(
        torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1
    ).flatten(0, 1).double()  # fmt: skip
    middle_k2 = torch.zeros(count, 2, dtype=torch.double).index_add_(0, cell_L, place_L2)
    middle_k2 /= torch.bincount(cell_L, minlength=count)[:, None]
    distance_Lk = torch.cdist(place_L2, middle_k2).round(decimals=6)
    distance_Lk[torch.arange(len(cell_L)), cell_L] = -1
    nearest = distance_Lk.argsort(dim=-1, stable=True)[:, : min(window**2, count)]
    return torch.zeros(distance_Lk.shape, dtype=torch.bool).scatter_(1, nearest, True)
