"""Tokens least like a few pivots.

B crops, L tokens, C width, P pivots, K what norms are taken of.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.cosine import cosine_along
from tokensieve.functional.topk import topk_mask


def unlike_pivots(
    tokens_BLC: Float[Tensor, "B L C"],
    norm_BL: Float[Tensor, "B L"],
    text_PC: Float[Tensor, "P C"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    pivots: int,
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens: the `pivots` of highest norm, and those least like a pivot in cosine.

    The pivots of a crop, the highest first, and then those of the text choose in turn; each takes
    an equal part, rounded up, of what is left to choose, of the tokens that are still there. The
    earlier token wins a tie. O(P L C); nothing waits for the device between two pivots.
    """
    most = min(pivots, valid_BL.shape[1])
    kept_BL = topk_mask(norm_BL, counts_B.clamp(max=most), valid_BL)
    ranked_BL = norm_BL.float().masked_fill(~kept_BL, -torch.inf)
    pivot_BP = ranked_BL.argsort(dim=-1, descending=True, stable=True)[:, :most]
    crop_B = torch.arange(len(counts_B), device=counts_B.device)
    turns = most + len(text_PC)
    for turn in range(turns):
        if turn < most:
            pivot_BC = tokens_BLC[crop_B, pivot_BP[:, turn]]
        else:
            pivot_BC = text_PC[turn - most].expand(len(counts_B), -1)
        left_B = counts_B - kept_BL.sum(-1)
        part_B = (left_B + turns - turn - 1) // (turns - turn)
        cosine_BL = cosine_along(tokens_BLC, pivot_BC, valid_BL)
        kept_BL |= topk_mask(-cosine_BL, part_B, valid_BL & ~kept_BL)
    return kept_BL


def highest(values_TC: Float[Tensor, "T C"], norm_T: Tensor, count: int) -> Float[Tensor, "P C"]:
    """The `count` rows of highest norm, all where there are fewer; the earlier first on a tie."""
    return values_TC[norm_T.float().argsort(descending=True, stable=True)[:count]]
