"""Spend a budget where it lowers the expected reconstruction error most.

B crops, L tokens, C width. `scores` are logarithms of the squared error expected of a token that
is dropped, in the units of the standardised features.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.topk import topk_mask


def cover_mask(
    scores_BL: Float[Tensor, "B L"],
    tokens_BLC: Float[Tensor, "B L C"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    worth: float,
    spread: float,
) -> Bool[Tensor, "B L"]:
    """First tokens that stand for many, while one saves `worth` ranked tokens; then the top.

    Dropping token i costs e_i = exp(score_i), or `spread` times its squared distance to a kept
    token where that is less. Keeping j saves the sum over i of what it lowers: of a token like no
    other only its own e_j, of one in a calm region a little of all its neighbours. A ranked token
    saves the mean of the `counts_B` highest e. The greedy choice is facility location's, but in
    units of error, so that it knows when ranking is worth more.
    """
    C = tokens_BLC.shape[-1]
    x = tokens_BLC.float().masked_fill(~valid_BL[..., None], 0)
    distance_BLL = torch.cdist(x, x).square() * (spread / C)
    cost_BL = scores_BL.float().exp().masked_fill(~valid_BL, 0)
    ranked = topk_mask(scores_BL, counts_B, valid_BL)
    threshold_B = worth * (cost_BL * ranked).sum(-1) / ranked.sum(-1).clamp_min(1)
    kept = torch.zeros_like(valid_BL)
    covering_B = counts_B > 0
    for step in range(int(counts_B.max()) if kept.numel() else 0):
        saved_BL = (cost_BL[..., None] - distance_BLL).clamp_min(0).sum(1)
        best_B, pick_B = saved_BL.masked_fill(kept | ~valid_BL, -torch.inf).max(-1)
        covering_B = covering_B & (best_B > threshold_B) & (step < counts_B)
        if not bool(covering_B.any()):
            break
        row = covering_B.nonzero()[:, 0]
        pick = pick_B[row]
        kept[row, pick] = True
        cost_BL[row] = torch.minimum(cost_BL[row], distance_BLL[row, pick])
    return topk_mask(scores_BL.float().masked_fill(kept, torch.inf), counts_B, valid_BL)
