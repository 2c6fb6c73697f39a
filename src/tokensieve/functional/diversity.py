"""Greedy choices of tokens that differ, and of tokens that stand for the others.

B crops, L tokens, C width, n tokens chosen. All crops advance together, one token a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.cosine import Cosines, crops_at_once


def max_min_diversity(
    tokens_BLC: Float[Tensor, "B L C"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens chosen so that the closest two are far apart in cosine [1].

    First the token farthest from its nearest neighbour, then always the one farthest from those
    chosen. O(L^2 C) for the first, O(n L) for the rest; `Cosines` says what is held in memory.

    [1] DivPrune, arXiv 2503.02175.
    """

    def isolation(cosines: Cosines, part: slice) -> Float[Tensor, "B L"]:
        return -cosines.nearest_BL

    return _farthest_first(tokens_BLC, counts_B, valid_BL, isolation, torch.minimum, nearest=True)


def k_centre(
    tokens_BLC: Float[Tensor, "B L C"],
    first_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens to which all others are near in cosine: greedy k-centre.

    The token with the highest `first_BL`, then always the one farthest from those chosen.
    """
    return _farthest_first(
        tokens_BLC, counts_B, valid_BL, lambda _, part: first_BL[part], torch.minimum
    )


def max_sum_diversity(
    tokens_BLC: Float[Tensor, "B L C"],
    first_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens with a large sum of cosine distances between them, greedily.

    The token with the highest `first_BL`, then always the one with the largest sum of distances to
    those chosen.
    """
    return _farthest_first(
        tokens_BLC, counts_B, valid_BL, lambda _, part: first_BL[part], torch.add
    )


def _farthest_first(
    tokens_BLC: Float[Tensor, "B L C"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    first: Callable[[Cosines, slice], Float[Tensor, "B L"]],
    join: Callable[[Tensor, Tensor], Tensor],
    *,
    nearest: bool = False,
) -> Bool[Tensor, "B L"]:
    """The token highest by `first`, then always the one farthest from those chosen.

    join: what a distance to one more chosen token makes of the distance to those before it.
    """
    kept_BL = counts_B[:, None].expand_as(valid_BL) >= valid_BL.sum(-1, keepdim=True)
    if bool(kept_BL.all()):
        return valid_BL.clone()
    kept_BL = torch.zeros_like(valid_BL)
    for part in crops_at_once(tokens_BLC):
        counts, valid, kept = counts_B[part], valid_BL[part], kept_BL[part]
        if (steps := int(counts.max())) == 0:
            continue
        cosines = Cosines(tokens_BLC[part], valid, steps, nearest=nearest)
        far = first(cosines, part).float().masked_fill(~valid, -torch.inf)
        picks = []
        for step in range(steps):
            picks.append(far.argmax(-1, keepdim=True))
            to_pick = 1 - cosines.row(picks[-1][:, 0])
            far = join(far, to_pick) if step else to_pick.masked_fill(~valid, -torch.inf)
            far.scatter_(1, picks[-1], -torch.inf)
        wanted = torch.arange(steps, device=counts.device) < counts[:, None]
        times = torch.zeros_like(valid, dtype=torch.long)
        kept |= times.scatter_add_(1, torch.cat(picks, 1), wanted.long()) > 0
    return kept_BL & valid_BL


def facility_location(
    tokens_BLC: Float[Tensor, "B L C"],
    weight_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens to which all others are near in root mean square distance.

    Each step takes the token that most lowers the weighted sum of distances to the chosen set;
    before any is chosen, a token's distance counts as its mean distance to all. O(n L^2).
    """
    L, C = tokens_BLC.shape[1:]
    x = tokens_BLC.float().masked_fill(~valid_BL[..., None], 0)
    distance_BLL = torch.cdist(x, x) / C**0.5
    real_BL = valid_BL.float()
    left_BL = (distance_BLL * real_BL[:, None]).sum(-1) / real_BL.sum(-1, keepdim=True).clamp_min(1)
    weight_BL = weight_BL.float() * real_BL
    kept = torch.zeros_like(valid_BL)
    row = torch.arange(len(kept), device=kept.device)
    for step in range(int(counts_B.max()) if L else 0):
        drop_BLL = (left_BL[..., None] - distance_BLL).clamp_min(0)
        gain_BL = torch.einsum("bi,bij->bj", weight_BL, drop_BLL)
        pick = gain_BL.masked_fill(kept | ~valid_BL, -torch.inf).argmax(-1)
        kept[row, pick] |= step < counts_B
        left_BL = torch.minimum(left_BL, distance_BLL[row, pick])
    return kept & valid_BL
