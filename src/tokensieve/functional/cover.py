"""Spend a budget where it lowers the expected reconstruction error most.

B crops, L tokens, C width. `scores` are logarithms of the squared error expected of a token that
is dropped, in the units of the standardised tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.topk import topk_mask

_TAKEN = -1.0  # below any error: padding, and tokens already kept


def cover_mask(
    scores_BL: Float[Tensor, "B L"],
    tokens_BLC: Float[Tensor, "B L C"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    worth: float,
    spread: float,
    cover_spread: float,
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens, chosen one by one by the error that is left.

    Dropping token i costs e_i = exp(score_i), or `spread` times its squared distance to a kept
    token where that is less: what looks like a kept token is no surprise any more. As long as one
    token saves `worth` ranked ones, the one that saves most over all tokens comes first: of a calm
    region it saves a little of all its neighbours (measured with the warier `cover_spread`; a
    ranked token saves the mean of the `counts_B` highest e). Then always the token with most left
    to lose: ranking that does not buy the same twice, and max-min diversity that knows what can be
    rebuilt.
    """
    B, L, C = tokens_BLC.shape
    steps = int(counts_B.max()) if B and L else 0
    x = tokens_BLC.float().masked_fill(~valid_BL[..., None], 0)
    distance_BLL = torch.cdist(x, x).square() / C
    left_BL = scores_BL.float().exp()
    ranked = topk_mask(scores_BL, counts_B, valid_BL)
    bar_B = worth * (left_BL * ranked).sum(-1) / ranked.sum(-1).clamp_min(1)
    left_BL = left_BL.masked_fill(~valid_BL, _TAKEN)
    uncovered_BL = left_BL.clone()
    covering_B = counts_B > 0
    row = torch.arange(B, device=x.device)
    order_BK = torch.full((B, steps), L, device=x.device)
    for step in range(steps):
        pick_B = left_BL.argmax(-1)
        if bool(covering_B.any()):
            some = covering_B.nonzero()[:, 0]
            away = cover_spread * distance_BLL[some]
            saved = (uncovered_BL[some, :, None] - away).clamp_min(0).sum(1)
            best, first = saved.masked_fill(left_BL[some] == _TAKEN, -1).max(-1)
            covering_B[some] = best > bar_B[some]
            pick_B[some] = torch.where(best > bar_B[some], first, pick_B[some])
        order_BK[:, step] = pick_B
        near_BL = distance_BLL[row, pick_B]
        left_BL = torch.minimum(left_BL, spread * near_BL)
        uncovered_BL = torch.minimum(uncovered_BL, cover_spread * near_BL)
        left_BL[row, pick_B] = _TAKEN
    wanted_BK = torch.arange(steps, device=x.device) < counts_B[:, None]
    kept = valid_BL.new_zeros(B, L + 1)  # the last column takes what is not wanted
    return kept.scatter_(1, order_BK.where(wanted_BK, L), True)[:, :L] & valid_BL
