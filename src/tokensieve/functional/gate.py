"""Rank where a policy is decided, cover where it is not.

B crops, L tokens, C width. `scores` are keep logit minus drop logit.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.diversity import facility_location
from tokensieve.functional.topk import topk_mask


def decided_share(
    scores_BL: Float[Tensor, "B L"], valid_BL: Bool[Tensor, "B L"]
) -> Float[Tensor, "B"]:
    """Share of the Bernoulli variance of q = sigmoid(score) that lies between tokens.

    var(q) / (mean(q) (1 - mean(q))): 1 where every token is surely in or out, 0 where all tokens
    have the same odds and a ranking would rank noise.
    """
    real = valid_BL.float()
    n = real.sum(-1).clamp_min(1)
    q = torch.sigmoid(scores_BL.float())
    mean = (q * real).sum(-1) / n
    variance = ((q - mean[:, None]).square() * real).sum(-1) / n
    return variance / (mean * (1 - mean)).clamp_min(1e-8)


def gated_mask(
    scores_BL: Float[Tensor, "B L"],
    tokens_BLC: Float[Tensor, "B L C"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    low: float = 0.1,
    high: float = 0.2,
) -> Bool[Tensor, "B L"]:
    """Top tokens by score where the scores are decided, facility location where they are not.

    The share of a crop's budget that is ranked rises from 0 at a decided share of `low` to 1 at
    `high`; the rest is covered first, weighted by sigmoid(score).
    """
    share_B = ((decided_share(scores_BL, valid_BL) - low) / (high - low)).clamp(0, 1)
    cover_B = ((1 - share_B) * counts_B).round().long()
    kept = torch.zeros_like(valid_BL)
    flat = cover_B > 0  # usually few crops: covering costs, ranking does not
    if bool(flat.any()):
        kept[flat] = facility_location(
            tokens_BLC[flat], torch.sigmoid(scores_BL[flat]), cover_B[flat], valid_BL[flat]
        )
    first = scores_BL.float().masked_fill(kept, torch.inf)
    return topk_mask(first, counts_B, valid_BL)
