"""Runs of tokens in reading order, and how a budget is spread over them.

B crops, L tokens, R runs of a crop.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def run_of(valid_BL: Bool[Tensor, "B L"], runs: int) -> Int[Tensor, "B L"]:
    """The run of each real token when a crop's are cut into `runs`, the first of which hold one
    more where they cannot be equal; `runs` in padding."""
    n_B1 = valid_BL.sum(-1, keepdim=True)
    size_B1, longer_B1 = n_B1 // runs, n_B1 % runs
    place_BL = valid_BL.cumsum(-1) - 1
    head_B1 = longer_B1 * (size_B1 + 1)
    run_BL = torch.where(
        place_BL < head_B1,
        place_BL // (size_B1 + 1),
        longer_B1 + (place_BL - head_B1) // size_B1.clamp_min(1),
    )
    return run_BL.masked_fill(~valid_BL, runs)


def sums_of_runs(
    values_BL: Float[Tensor, "B L"], run_BL: Int[Tensor, "B L"], runs: int
) -> Float[Tensor, "B R"]:
    """The sum of each run's values."""
    total_BR = torch.zeros(len(run_BL), runs + 1, device=values_BL.device)
    return total_BR.scatter_add_(1, run_BL, values_BL.float())[:, :runs]


def spend_on_runs(
    weight_BR: Float[Tensor, "B R"], size_BR: Int[Tensor, "B R"], counts_B: Int[Tensor, "B"]
) -> Int[Tensor, "B R"]:
    """Tokens of each run: its share by weight, rounded down and no more than it has.

    What is left goes one by one to the runs of highest weight that have room, in as many rounds as
    it takes. weight: not negative.
    """
    total_B1 = weight_BR.sum(-1, keepdim=True)
    share_BR = (weight_BR / total_B1.clamp_min(1e-30)).double()
    given_BR = torch.minimum((share_BR * counts_B[:, None]).floor().long(), size_BR)
    while bool(((left_B := counts_B - given_BR.sum(-1)) > 0).any()):  # mostly one round
        room_BR = given_BR < size_BR
        order_BR = weight_BR.masked_fill(~room_BR, -torch.inf).argsort(
            dim=-1, descending=True, stable=True
        )
        place_BR = torch.empty_like(order_BR).scatter_(
            1, order_BR, torch.arange(order_BR.shape[1], device=order_BR.device).expand_as(order_BR)
        )
        given_BR = given_BR + (room_BR & (place_BR < left_B[:, None])).long()
    return given_BR
