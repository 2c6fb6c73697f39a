"""Clusters of tokens around those that have many near ones.

B crops, L tokens, C width, P tokens that take part (or are compared at a time), k nearest ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.functional.cosine import Cosines, crops_at_once
from tokensieve.functional.places import own_places, positions

_PART = 1024  # tokens compared with all others at a time


@dataclass(frozen=True)
class Kernel:
    """exp(-(distance / width)^power)."""

    width: float
    power: int = 1


def bounded_peaks(
    tokens_BLC: Float[Tensor, "B L C"],
    among_BL: Bool[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    cutoff: float,
    kernel: Kernel | None = None,
) -> Bool[Tensor, "B L"]:
    """Distance bounded density peaks [1]: in order of falling density, each token farther than
    `cutoff` in cosine distance from all taken before; at most `counts_B[b]` of a crop.

    Density is `kernel_density`, by a kernel of width `cutoff` unless told. Tokens outside `among`
    take no part and are not even compared. The earlier token wins a tie.

    [1] PACT, arXiv 2504.08966.
    """
    index_BP, real_BP = positions(among_BL)
    taken_BPC = tokens_BLC.gather(1, index_BP[..., None].expand(-1, -1, tokens_BLC.shape[-1]))
    density_BP = kernel_density(taken_BPC, real_BP, kernel or Kernel(cutoff))
    peak_BP = torch.zeros_like(real_BP)
    for part in crops_at_once(taken_BPC) if real_BP.numel() else ():
        peak_BP[part] = _spread(
            taken_BPC[part], density_BP[part], counts_B[part], real_BP[part], cutoff
        )
    return torch.zeros_like(among_BL).scatter(1, index_BP, peak_BP)


def kernel_density(
    tokens_BLC: Float[Tensor, "B L C"], valid_BL: Bool[Tensor, "B L"], kernel: Kernel
) -> Float[Tensor, "B L"]:
    """Sum of the kernel of cosine distances to a crop's real tokens, itself among them."""
    unit_BLC = normalize(tokens_BLC.float().masked_fill(~valid_BL[..., None], 0), dim=-1)
    sums = [torch.zeros_like(unit_BLC[:, :0, 0])]
    for part_BPC in torch.split(unit_BLC, _PART, 1):
        far_BPL = (part_BPC @ unit_BLC.mT).sub_(1).neg_().clamp_min_(0).div_(kernel.width)
        near_BPL = far_BPL.pow_(kernel.power).neg_().exp_()
        sums.append(near_BPL.masked_fill_(~valid_BL[:, None], 0).sum(-1))
    return torch.cat(sums, 1)


def _spread(
    tokens_BLC: Tensor, density_BL: Tensor, counts_B: Tensor, valid_BL: Tensor, cutoff: float
) -> Bool[Tensor, "B L"]:
    steps = int(counts_B.max())
    cosines = Cosines(tokens_BLC, valid_BL, steps)
    free_BL, taken_BL = valid_BL.clone(), torch.zeros_like(valid_BL)
    crop_B = torch.arange(len(free_BL), device=free_BL.device)
    for step in range(steps):
        more_B = free_BL.any(-1) & (step < counts_B)
        if not bool(more_B.any()):
            break
        pick_B = density_BL.masked_fill(~free_BL, -torch.inf).argmax(-1)
        taken_BL[crop_B, pick_B] |= more_B
        free_BL &= 1 - cosines.row(pick_B) > cutoff
        free_BL[crop_B, pick_B] = False
    return taken_BL


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
    return centre_BL, own_places(valid_BL).where(centre_BL, assign_BL)
