"""Greedy choices of tokens that differ, and of tokens that stand for the others.

B crops, L tokens, C width, n tokens chosen. All crops advance together, one token a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokensieve.functional.cosine import Cosines, crops_at_once

_ALIKE = 1e-6  # distance of equal tokens: above 0, so that among them the heaviest comes first
_MANY = 4  # a logarithm of all distances pays where a quarter of the rows is asked for


@dataclass(frozen=True)
class Crowd:
    """Tokens weigh as much as those they stand for.

    power: exponent of their number; 0: each counts as one.
    radius: cosine distance below which tokens look alike.
    """

    power: float = 0.0
    radius: float = 0.3

    def cosines(
        self, tokens_BLC: Float[Tensor, "B L C"], valid_BL: Bool[Tensor, "B L"], rows: int
    ) -> Cosines:
        """The product that tells both who is alike and how far it is to what is chosen."""
        return Cosines(tokens_BLC, valid_BL, rows, radius=self.radius if self.power else None)

    def joined(self, log_weight_BL: Float[Tensor, "B L"], cosines: Cosines
               ) -> Float[Tensor, "B L"]:  # fmt: skip
        """Logarithms of the weights with the crowd's."""
        if not self.power:
            return log_weight_BL
        return log_weight_BL + self.power * cosines.crowd_BL.log()


ALONE = Crowd()


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
        crop = torch.arange(len(counts), device=counts.device)
        far = first(cosines, part).float().masked_fill(~valid, -torch.inf)
        for step in range(steps):
            pick = far.argmax(-1)
            kept[crop, pick] |= step < counts
            to_pick = 1 - cosines.row(pick)
            far = join(far, to_pick) if step else to_pick.masked_fill(~valid, -torch.inf)
            far[crop, pick] = -torch.inf
    return kept_BL & valid_BL


def weighted_diversity(
    tokens_BLC: Float[Tensor, "B L C"],
    log_weight_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    crowd: Crowd = ALONE,
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens, each the one whose loss would cost most given those before it.

    First the heaviest token, then always the one with the largest product of its weight and its
    cosine distance to the nearest chosen token. Equal weights leave max-min distances (begun with
    the first token, not the most isolated one), very unequal ones the ranking by weight.
    """
    steps = int(counts_B.max()) if counts_B.numel() else 0
    order_BK, _ = diverse_order(tokens_BLC, log_weight_BL, valid_BL, steps, crowd)
    return first_of(order_BK, counts_B, valid_BL)


def diverse_order(
    tokens_BLC: Float[Tensor, "B L C"],
    log_weight_BL: Float[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"],
    steps: int,
    crowd: Crowd = ALONE,
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The first K = `steps` tokens that `weighted_diversity` takes, and the logarithm of what each
    was worth then: its weight times its distance to those before it (the first: its weight).

    Past a crop's last real token the worth is -inf. O(L^2 C) for `crowd` and the distances, from
    one product; O(n L) for the rest. On a CPU crop by crop, elsewhere all crops together.
    """
    B = len(tokens_BLC)
    free_BL = log_weight_BL.detach().float()
    order_BK = torch.zeros(B, steps, dtype=torch.long, device=free_BL.device)
    worth_BK = free_BL.new_full((B, steps), -torch.inf)
    if free_BL.device.type != "cpu":
        for part in crops_at_once(tokens_BLC):
            cosines, valid = crowd.cosines(tokens_BLC[part], valid_BL[part], steps), valid_BL[part]
            free = crowd.joined(free_BL[part], cosines).masked_fill(~valid, -torch.inf)
            _take_together(cosines, free, order_BK[part], worth_BK[part])
        return order_BK, worth_BK
    whole = bool(valid_BL.all())
    for b in range(B if steps else 0):
        real = None if whole else valid_BL[b].nonzero()[:, 0]
        tokens, free = tokens_BLC[b : b + 1].detach(), free_BL[b : b + 1]
        if real is not None:
            tokens, free = tokens[:, real], free[:, real]
        n = min(steps, tokens.shape[1])
        cosines = crowd.cosines(tokens, torch.ones(free.shape, dtype=torch.bool), n)
        found, worth_BK[b, :n] = _take(cosines, crowd.joined(free, cosines)[0], n)
        order_BK[b, :n] = found if real is None else real[found]
    return order_BK, worth_BK


def _take(
    cosines: Cosines, free_L: Float[Tensor, "L"], steps: int
) -> tuple[Int[Tensor, "K"], Float[Tensor, "K"]]:
    """The order of one crop of real tokens. In NumPy: a step is a few calls on one row, and torch
    takes some microseconds to begin each."""
    free, far = free_L.numpy().copy(), _log_distances(cosines, steps)
    near, now = np.zeros_like(free), np.empty_like(free)
    order, worth = np.empty(steps, dtype=np.int64), np.empty(steps, dtype=np.float32)
    for step in range(steps):
        np.add(free, near, out=now)
        pick = int(now.argmax())
        order[step], worth[step] = pick, now[pick]
        free[pick] = -np.inf
        if step:
            np.minimum(near, far(pick), out=near)
        else:
            near[:] = far(pick)
    return torch.from_numpy(order), torch.from_numpy(worth)


def _log_distances(cosines: Cosines, steps: int) -> Callable[[int], NDArray[np.float32]]:
    """Logarithms of a token's distances to all: of all at once where many rows are asked for."""
    whole = None if cosines.whole_BLL is None else cosines.whole_BLL[0].numpy()
    if whole is not None and _MANY * steps > len(whole):
        return _log_far(whole, whole).__getitem__
    out = np.empty(cosines.crowd_BL.shape[1], dtype=np.float32)

    def row(pick: int) -> NDArray[np.float32]:
        alike = cosines.row(torch.tensor([pick]))[0].numpy() if whole is None else whole[pick]
        return _log_far(alike, out)

    return row


def _log_far(cosine: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    np.subtract(1, cosine, out=out)
    np.maximum(out, _ALIKE, out=out)
    return np.log(out, out=out)


def _take_together(
    cosines: Cosines,
    free_BL: Float[Tensor, "B L"],
    order_BK: Int[Tensor, "B K"],
    worth_BK: Float[Tensor, "B K"],
) -> None:
    """The orders of crops that advance together, written into the last two; spoils `free_BL`."""
    row = torch.arange(len(free_BL), device=free_BL.device)
    near_BL = torch.zeros_like(free_BL)
    for step in range(order_BK.shape[1] if free_BL.numel() else 0):
        worth_BK[:, step], pick = (free_BL + near_BL).max(-1)
        order_BK[:, step] = pick
        free_BL[row, pick] = -torch.inf
        far_BL = (1 - cosines.row(pick)).clamp_min_(_ALIKE).log_()
        near_BL = torch.minimum(near_BL, far_BL) if step else far_BL


def first_of(
    order_BK: Int[Tensor, "B K"], counts_B: Int[Tensor, "B"], valid_BL: Bool[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """True at the first `counts_B[b]` tokens of row b of an order."""
    step_K = torch.arange(order_BK.shape[1], device=order_BK.device)
    taken_BK = (step_K < counts_B[:, None]).int()
    kept_BL = torch.zeros(valid_BL.shape, dtype=torch.int, device=valid_BL.device)
    return (kept_BL.scatter_add_(1, order_BK, taken_BK) > 0) & valid_BL


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
