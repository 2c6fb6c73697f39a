"""Clusters of tokens around those that have many near ones.

B crops, L tokens, C width, k tokens chosen.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

_PART = 1024  # tokens compared with all others at a time


def kernel_density(
    tokens_BLC: Float[Tensor, "B L C"], valid_BL: Bool[Tensor, "B L"], cutoff: float
) -> Float[Tensor, "B L"]:
    """Sum over a crop's real tokens of exp(-cosine distance / cutoff), itself among them."""
    unit_BLC = _unit(tokens_BLC, valid_BL)
    parts = [
        ((part @ unit_BLC.mT - 1) / cutoff).exp().masked_fill(~valid_BL[:, None], 0).sum(-1)
        for part in torch.split(unit_BLC, _PART, 1)
    ]
    return torch.cat(parts, 1)


def spread_peaks(
    tokens_BLC: Float[Tensor, "B L C"],
    density_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    cutoff: float,
) -> Bool[Tensor, "B L"]:
    """In order of falling density, each token farther than `cutoff` in cosine from all taken
    before; at most `counts_B[b]` of a crop. The earlier token wins a tie."""
    unit_BLC = _unit(tokens_BLC, valid_BL)
    free_BL, taken_BL = valid_BL.clone(), torch.zeros_like(valid_BL)
    row = torch.arange(len(free_BL), device=free_BL.device)
    for step in range(int(counts_B.max()) if counts_B.numel() else 0):
        more_B = free_BL.any(-1) & (step < counts_B)
        if not bool(more_B.any()):
            break
        pick = density_BL.masked_fill(~free_BL, -torch.inf).argmax(-1)
        taken_BL[row, pick] |= more_B
        distance_BL = 1 - (unit_BLC @ unit_BLC[row, pick, :, None])[..., 0]
        free_BL &= distance_BL > cutoff
        free_BL[row, pick] = False
    return taken_BL


def nearest_among(
    tokens_BLC: Float[Tensor, "B L C"], chosen_BL: Bool[Tensor, "B L"]
) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B L"]]:
    """The chosen token nearest to each token in cosine, and its distance; -1 and inf where none is
    chosen. What stands at tokens that take part in nothing is of no use."""
    unit_BLC = normalize(tokens_BLC.float().nan_to_num(0, 0, 0), dim=-1)
    nearest, near = [], []
    for part in torch.split(unit_BLC, _PART, 1):
        likeness = (part @ unit_BLC.mT).masked_fill(~chosen_BL[:, None], -torch.inf)
        best = likeness.max(-1)
        nearest.append(best.indices)
        near.append(1 - best.values)
    nearest_BL, near_BL = torch.cat(nearest, 1), torch.cat(near, 1)
    return nearest_BL.masked_fill(torch.isinf(near_BL), -1), near_BL


def density_peaks(
    tokens_BLC: Float[Tensor, "B L C"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    neighbours: int = 5,
) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Density peak clustering with nearest neighbours [1]: centres, and each token's centre.

    Density is exp of minus the mean squared distance to the nearest `neighbours` tokens (over the
    width); a centre is dense and far from anything denser, by the product of both. -1 for padding
    and where a crop has no centre. Distances are Euclidean; O(L^2) memory.

    [1] Du et al., Study on density peaks clustering based on k-nearest neighbors, 2016.
    """
    _, L, C = tokens_BLC.shape
    if L == 0:
        return valid_BL, torch.zeros_like(valid_BL, dtype=torch.long)
    clean_BLC = tokens_BLC.float().masked_fill(~valid_BL[..., None], 0)
    distance_BLL = torch.cdist(clean_BLC, clean_BLC) / C**0.5
    eye = torch.eye(L, dtype=torch.bool, device=valid_BL.device)
    real_BLL = valid_BL[:, None] & valid_BL[:, :, None]
    apart_BLL = distance_BLL.masked_fill(~real_BLL | eye, torch.inf)
    near_BLk = apart_BLL.topk(min(neighbours, L), largest=False).values
    finite_BLk = torch.isfinite(near_BLk)
    mean_BL = near_BLk.masked_fill(~finite_BLk, 0).square().sum(-1) / finite_BLk.sum(-1).clamp(1)
    density_BL = (-mean_BL).exp().masked_fill(~valid_BL, -torch.inf)
    order_BL = density_BL.argsort(dim=-1, descending=True, stable=True)
    place_BL = torch.empty_like(order_BL).scatter_(
        1, order_BL, torch.arange(L, device=order_BL.device).expand_as(order_BL)
    )
    denser_BLL = (place_BL[:, None] < place_BL[:, :, None]) & real_BLL  # row: token, column: other
    far_BL = distance_BLL.masked_fill(~real_BLL, 0).amax((1, 2))
    gap_BL = distance_BLL.masked_fill(~denser_BLL, torch.inf).amin(-1)
    gap_BL = gap_BL.where(torch.isfinite(gap_BL), far_BL[:, None])
    worth_BL = (density_BL * gap_BL).masked_fill(~valid_BL, -torch.inf)
    rank_BL = worth_BL.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    centre_BL = (rank_BL < counts_B[:, None]) & valid_BL
    to_centre = distance_BLL.masked_fill(~centre_BL[:, None], torch.inf).min(-1)
    assign_BL = to_centre.indices.masked_fill(torch.isinf(to_centre.values) | ~valid_BL, -1)
    own = torch.arange(L, device=centre_BL.device).expand_as(assign_BL)
    return centre_BL, own.where(centre_BL, assign_BL)


def _unit(tokens_BLC: Tensor, valid_BL: Tensor) -> Tensor:
    return normalize(tokens_BLC.float().masked_fill(~valid_BL[..., None], 0), dim=-1)
