"""Tokens one after another, each the one whose loss would cost most given those before it.

B crops, L tokens, C width, K steps, n real tokens of a crop.
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

ALIKE = 1e-6  # distance of equal tokens: above 0, so that among them the heaviest comes first
_MANY = 4  # a logarithm of all distances pays where a quarter of the rows is asked for


@dataclass(frozen=True)
class Crowd:
    """Tokens weigh as much as those they stand for, and words go on before others begin.

    power: exponent of their number; 0: each counts as one.
    radius: cosine distance below which tokens look alike.
    words: a token beside a chosen one comes before one that is worth up to 1 + `words` times as
        much, less by the number of tokens alike to that one: letters are like few others and give
        way, a sky or a wall does not. 0: never.
    """

    power: float = 0.0
    radius: float = 0.3
    words: float = 0.0

    def cosines(
        self, tokens_BLC: Float[Tensor, "B L C"], valid_BL: Bool[Tensor, "B L"], rows: int
    ) -> Cosines:
        """The product that tells both who is alike and how far it is to what is chosen."""
        radius = self.radius if self.power or self.words else None
        return Cosines(tokens_BLC, valid_BL, rows, radius=radius)

    def joined(self, log_weight_BL: Float[Tensor, "B L"], cosines: Cosines
               ) -> Float[Tensor, "B L"]:  # fmt: skip
        """Logarithms of the weights with the crowd's."""
        if not self.power:
            return log_weight_BL
        return log_weight_BL + self.power * cosines.crowd_BL.log()

    def patience(self, cosines: Cosines) -> Float[Tensor, "B L"]:
        """Logarithms of how much more a token may be worth and yet wait."""
        return (self.words / cosines.crowd_BL).log1p()


ALONE = Crowd()


def weighted_diversity(
    tokens_BLC: Float[Tensor, "B L C"],
    log_weight_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    crowd: Crowd = ALONE,
    beside_BL2: Int[Tensor, "B L 2"] | None = None,
) -> Bool[Tensor, "B L"]:
    """`counts_B[b]` tokens, each the one whose loss would cost most given those before it.

    First the heaviest token, then always the one with the largest product of its weight and its
    cosine distance to the nearest chosen token. Equal weights leave max-min distances (begun with
    the first token, not the most isolated one), very unequal ones the ranking by weight.

    beside: the tokens left and right of each one, -1 for none, for `crowd.words`; None: there are
    none anywhere, and words are not seen.
    """
    steps = int(counts_B.max()) if counts_B.numel() else 0
    order_BK, _ = diverse_order(tokens_BLC, log_weight_BL, valid_BL, steps, crowd, beside_BL2)
    return first_of(order_BK, counts_B, valid_BL)


def diverse_order(
    tokens_BLC: Float[Tensor, "B L C"],
    log_weight_BL: Float[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"],
    steps: int,
    crowd: Crowd = ALONE,
    beside_BL2: Int[Tensor, "B L 2"] | None = None,
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
    if not crowd.words:
        beside_BL2 = None
    if free_BL.device.type != "cpu":
        for part in crops_at_once(tokens_BLC):
            found = order_BK[part], worth_BK[part]
            near = None if beside_BL2 is None else beside_BL2[part]
            _take_together(tokens_BLC[part], free_BL[part], valid_BL[part], crowd, near, found)
        return order_BK, worth_BK
    whole = bool(valid_BL.all())
    for b in range(B if steps else 0):
        tokens, free = tokens_BLC[b].detach(), free_BL[b]
        near = None if beside_BL2 is None else beside_BL2[b]
        real = None if whole else valid_BL[b].nonzero()[:, 0]
        if real is not None:
            tokens, free = tokens[real], free[real]
            near = None if near is None else _among(near, real)
        n = min(steps, len(tokens))
        found = _take(tokens, free, n, crowd, near)
        order_BK[b, :n] = found[0] if real is None else real[found[0]]
        worth_BK[b, :n] = found[1]
    return order_BK, worth_BK


def _among(beside_L2: Int[Tensor, "L 2"], real: Int[Tensor, "n"]) -> Int[Tensor, "n 2"]:
    """The same neighbours where only the `real` tokens are counted."""
    place_L = torch.full((len(beside_L2) + 1,), -1)  # the last: no neighbour has none either
    place_L[real] = torch.arange(len(real))
    return place_L[beside_L2[real]]


def _take(
    tokens_LC: Float[Tensor, "L C"], free_L: Float[Tensor, "L"], steps: int, crowd: Crowd,
    beside_L2: Int[Tensor, "L 2"] | None,
) -> tuple[Int[Tensor, "K"], Float[Tensor, "K"]]:  # fmt: skip
    """The order of one crop of real tokens. In NumPy: a step is a few calls on one row, and torch
    takes some microseconds to begin each."""
    valid_1L = torch.ones(1, len(free_L), dtype=torch.bool)
    cosines = crowd.cosines(tokens_LC[None], valid_1L, steps)
    free = crowd.joined(free_L[None], cosines)[0].numpy().copy()
    near, now = np.zeros_like(free), np.empty_like(free)
    order, worth = np.empty(steps, dtype=np.int64), np.empty(steps, dtype=np.float32)
    words = None
    if beside_L2 is not None:
        words = _Words(crowd.patience(cosines)[0].numpy(), beside_L2.tolist())
    far = _log_distances(cosines, steps)
    for step in range(steps):
        np.add(free, near, out=now)
        pick = int(now.argmax())
        if words is not None:
            pick = words.instead(pick, now)
        order[step], worth[step] = pick, now[pick]
        free[pick] = -np.inf
        if step:
            np.minimum(near, far(pick), out=near)
        else:
            near[:] = far(pick)
    return torch.from_numpy(order), torch.from_numpy(worth)


class _Words:
    """Which tokens go on from a chosen one, to its left or right."""

    def __init__(self, patience: NDArray[np.float32], beside: list[list[int]]) -> None:
        self._patience, self._beside = patience, beside
        self._closed = np.full_like(patience, -np.inf)  # 0 beside a chosen token
        self._value = np.empty_like(patience)

    def instead(self, pick: int, now: NDArray[np.float32]) -> int:
        """The token to choose where `pick` is worth most of all `now`; it counts as chosen."""
        if self._closed[pick] < 0:
            np.add(now, self._closed, out=self._value)
            on = int(self._value.argmax())
            if self._value[on] + self._patience[pick] > now[pick]:
                pick = on
        for place in self._beside[pick]:
            if place >= 0:
                self._closed[place] = 0
        return pick


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
    np.maximum(out, ALIKE, out=out)
    return np.log(out, out=out)


def _take_together(
    tokens_BLC: Float[Tensor, "B L C"], free_BL: Float[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"], crowd: Crowd,
    beside_BL2: Int[Tensor, "B L 2"] | None, found: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    """The orders of crops that advance together, written into `found`: order and worth."""
    order_BK, worth_BK = found
    cosines = crowd.cosines(tokens_BLC, valid_BL, order_BK.shape[1])
    free_BL = crowd.joined(free_BL, cosines).masked_fill(~valid_BL, -torch.inf)
    near_BL, row = torch.zeros_like(free_BL), torch.arange(len(free_BL), device=free_BL.device)
    closed_BL1 = torch.nn.functional.pad(torch.full_like(free_BL, -torch.inf), (0, 1))
    for step in range(order_BK.shape[1] if free_BL.numel() else 0):
        now_BL = free_BL + near_BL
        worth_B, pick_B = now_BL.max(-1)
        if beside_BL2 is not None:
            patience_B = crowd.patience(cosines)[row, pick_B]
            value_B, on_B = (now_BL + closed_BL1[:, :-1]).max(-1)
            wait_B = (closed_BL1[row, pick_B] < 0) & (value_B + patience_B > worth_B)
            pick_B, worth_B = (
                torch.where(wait_B, on_B, pick_B),
                torch.where(wait_B, value_B, worth_B),
            )
            closed_BL1[row[:, None], beside_BL2[row, pick_B]] = 0  # of -1 the place behind the last
        order_BK[:, step], worth_BK[:, step] = pick_B, worth_B
        free_BL[row, pick_B] = -torch.inf
        far_BL = (1 - cosines.row(pick_B)).clamp_min_(ALIKE).log_()
        near_BL = torch.minimum(near_BL, far_BL) if step else far_BL


def first_of(
    order_BK: Int[Tensor, "B K"], counts_B: Int[Tensor, "B"], valid_BL: Bool[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """True at the first `counts_B[b]` tokens of row b of an order."""
    step_K = torch.arange(order_BK.shape[1], device=order_BK.device)
    taken_BK = (step_K < counts_B[:, None]).int()
    kept_BL = torch.zeros(valid_BL.shape, dtype=torch.int, device=valid_BL.device)
    return (kept_BL.scatter_add_(1, order_BK, taken_BK) > 0) & valid_BL
