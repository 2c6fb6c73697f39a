"""How many tokens a picture keeps where its own tokens decide.

B crops, L tokens of a crop, K tokens in the order in which a rule takes them, S shares of a table.
A budget is then an average: a crop asked for n tokens keeps from half to twice as many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.budget import EPS

# Shares of a table of thresholds: close where quality is steep in the number of tokens.
SHARES = (.01, .02, .03, .04, .05, .07, .1, .14, .2, .25, .3, .4, .5, .6, .7, .8, .9)  # fmt: skip


def mask_counts(
    logits_BL: Float[Tensor, "B L"], counts_B: Int[Tensor, "B"], valid_BL: Bool[Tensor, "B L"]
) -> Int[Tensor, "B"]:
    """Real tokens whose keep logit minus drop logit is above 0, from 1 up to `counts_B`.

    A crop asked for all its tokens keeps all: `keep=1` changes nothing.
    """
    found_B = ((logits_BL > 0) & valid_BL).sum(-1)
    found_B = torch.minimum(found_B.clamp_min(1), counts_B)
    return torch.where(counts_B >= valid_BL.sum(-1), counts_B, found_B)


def largest_counts(counts_B: Int[Tensor, "B"], valid_BL: Bool[Tensor, "B L"]) -> Int[Tensor, "B"]:
    """The most that `adaptive_counts` can give: twice the budget, or all real tokens."""
    return torch.minimum(2 * counts_B, valid_BL.sum(-1))


def adaptive_counts(
    worth_BK: Float[Tensor, "B K"],
    threshold_B: Float[Tensor, "B"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
) -> Int[Tensor, "B"]:
    """Tokens taken until one is worth no more than the threshold: half to twice `counts_B`.

    worth_BK: what each token was worth when its rule took it; the first is always taken, since its
    worth has no distance to another token in it. K is at least the largest of `largest_counts`.
    A crop asked for all its tokens keeps all.
    """
    later_BK = worth_BK[:, 1:].cummin(-1).values if worth_BK.shape[1] > 1 else worth_BK[:, 1:]
    found_B = 1 + (later_BK > threshold_B[:, None]).sum(-1)
    most_B = largest_counts(counts_B, valid_BL)
    found_B = torch.minimum(torch.maximum(found_B, (counts_B + 1) // 2), most_B)
    return torch.where(counts_B >= valid_BL.sum(-1), counts_B, found_B)


def threshold_at(thresholds: Sequence[float], share_B: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The threshold of each share, linear between the SHARES of the table, level beyond them."""
    shares_S = torch.tensor(SHARES, device=share_B.device)
    table_S = torch.tensor(tuple(thresholds), device=share_B.device)
    share_B = share_B.float().clamp(SHARES[0], SHARES[-1])
    right_B = torch.searchsorted(shares_S, share_B.contiguous()).clamp(1, len(SHARES) - 1)
    left_B = right_B - 1
    part_B = (share_B - shares_S[left_B]) / (shares_S[right_B] - shares_S[left_B])
    return table_S[left_B] + part_B * (table_S[right_B] - table_S[left_B])


def part_of(counts_B: Int[Tensor, "B"], share: float) -> Int[Tensor, "B"]:
    """That share of each count, half a token rounded up; at least one unless the share is 0."""
    if share == 0:
        return torch.zeros_like(counts_B)
    return torch.minimum(rounded_share(counts_B, share).clamp_min(1), counts_B)


def rounded(count: int, share: float) -> int:
    """`rounded_share` of one count, half up."""
    return math.floor(count * share + 0.5 + EPS)


def rounded_share(
    counts_B: Int[Tensor, "B"], share: float, to: Literal["down", "half up", "up"] = "half up"
) -> Int[Tensor, "B"]:
    """That share of each count as a whole number; 0.3 of 50 is 15, whatever floats say of it."""
    part_B = counts_B.double() * share
    if to == "up":
        return (part_B - EPS).ceil().long()
    return (part_B + (0.5 if to == "half up" else 0) + EPS).floor().long()


def outlier_counts(
    scores_BL: Float[Tensor, "B L"], valid_BL: Bool[Tensor, "B L"]
) -> Int[Tensor, "B"]:
    """How many real scores lie above the third quartile by more than 1.5 interquartile ranges."""
    real_BL = scores_BL.float().masked_fill(~valid_BL, torch.nan)
    first_B, third_B = (torch.nanquantile(real_BL, q, dim=-1) for q in (0.25, 0.75))
    return (real_BL > (third_B + 1.5 * (third_B - first_B))[:, None]).sum(-1)
