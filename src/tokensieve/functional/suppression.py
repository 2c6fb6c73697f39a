"""The best tokens, near copies of better ones last.

B crops, L tokens, C width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.cosine import Cosines, crops_at_once


def suppressed_top(
    tokens_BLC: Float[Tensor, "B L C"],
    scores_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    similar: float,
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens by greedy non-maximum suppression.

    In order of score, the earlier first on a tie. A token whose cosine with one already taken is
    `similar` or more is passed over; where too few are left, those passed over follow in the same
    order. O(n L) beside the cosines; nothing waits for the device between two tokens.
    """
    if bool((counts_B >= valid_BL.sum(-1)).all()):
        return valid_BL.clone()
    kept_BL = torch.zeros_like(valid_BL)
    L = valid_BL.shape[1]
    for part in crops_at_once(tokens_BLC):
        counts, valid, kept = counts_B[part], valid_BL[part], kept_BL[part]
        steps = int(counts.max())
        order = scores_BL[part].float().masked_fill(~valid, -torch.inf)
        order = order.argsort(dim=-1, descending=True, stable=True)
        turn = torch.empty_like(order).scatter_(
            1, order, torch.arange(L, device=order.device).expand_as(order)
        )
        turn = turn + 4 * L * ~valid  # lower is sooner: + L once passed over, + 2 L once taken
        cosines = Cosines(tokens_BLC[part], valid, steps)
        crop = torch.arange(len(counts), device=counts.device)
        copies = torch.zeros_like(valid)
        for step in range(steps):
            pick = (turn + L * copies).argmin(-1)
            kept[crop, pick] |= step < counts
            turn[crop, pick] += 2 * L
            copies |= cosines.row(pick) >= similar
    return kept_BL & valid_BL
