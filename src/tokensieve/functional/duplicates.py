"""Tokens that are almost others, taken out.

L tokens of a crop, n of them at hand, C width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def without_duplicates(
    tokens_LC: Float[Tensor, "L C"], rest_n: Int[Tensor, "n"], keep: int, at_once: int
) -> Int[Tensor, "k"]:
    """`keep` of the tokens `rest`, after rounds that take out the most duplicated.

    A round deals the list in turn to two halves. Each token of the first is as duplicated as its
    highest cosine with one of the second; the `at_once` most duplicated go. The list of the next
    round is what is left of the first half, the more duplicated in front, then the second half.
    n x n numbers; sizes of rounds are known beforehand, so nothing waits for the device.
    """
    if keep == 0:
        return rest_n[:0]
    unit_nC = normalize(tokens_LC[rest_n].float(), dim=-1)
    cosine_nn = unit_nC @ unit_nC.T
    at = torch.arange(len(rest_n), device=rest_n.device)
    while (excess := len(at) - keep) > 0:
        first, second = at[::2], at[1::2]
        alike = cosine_nn[first[:, None], second].amax(-1)
        gone = min(at_once, excess, len(first))
        at = torch.cat([first[alike.argsort(descending=True, stable=True)[gone:]], second])
    return rest_n[at]
