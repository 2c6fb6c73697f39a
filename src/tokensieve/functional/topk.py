"""Top-k as a mask, with a count per row.

B rows, L tokens of a row.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LOWEST = torch.finfo(torch.float32).min  # a real score of -inf still comes before padding


def topk_mask(
    scores_BL: Float[Tensor, "B L"],
    counts_B: Int[Tensor, "B"],
    valid_BL: Bool[Tensor, "B L"],
    ties_BL: Float[Tensor, "B L"] | None = None,
) -> Bool[Tensor, "B L"]:
    """True at the `counts_B[b]` highest valid scores of row b.

    A tie goes to the higher of `ties_BL` where given, then to the earlier token.
    """
    if ties_BL is None and scores_BL.device.type == "cpu":
        found_BL = _above(torch.where(valid_BL, scores_BL.float(), -torch.inf), counts_B.tolist())
        if found_BL is not None:
            return found_BL
    ranked = scores_BL.float().clamp_min(_LOWEST).masked_fill(~valid_BL, -torch.inf)
    if ties_BL is None:
        return _first_of_ties(ranked, counts_B) & valid_BL
    first = ties_BL.float().argsort(dim=-1, descending=True, stable=True)
    second = ranked.gather(-1, first).argsort(dim=-1, descending=True, stable=True)
    order = first.gather(-1, second)
    place = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return (place < counts_B[:, None]) & valid_BL


def _first_of_ties(ranked_BL: Tensor, counts_B: Tensor) -> Tensor:
    """Those above the k-th highest, and as many like it as there is room for, the earlier first.
    Values alone are sorted, which takes half of a stable order's time."""
    L = ranked_BL.shape[-1]
    if L == 0:
        return torch.zeros_like(ranked_BL, dtype=torch.bool)
    at_B1 = (L - counts_B[:, None]).clamp(0, L - 1)
    kth_B1 = ranked_BL.sort(-1).values.gather(1, at_B1)
    above_BL, like_BL = ranked_BL > kth_B1, ranked_BL == kth_B1
    room_B1 = counts_B[:, None] - above_BL.sum(-1, keepdim=True)
    return above_BL | (like_BL & (like_BL.cumsum(-1) <= room_B1))


def _above(ranked_BL: Tensor, counts: list[int]) -> Tensor | None:
    """Those not below the k-th highest, without sorting: where all rows want as many, and no tie
    (-inf among them) makes them more. A CPU's way; elsewhere it would wait for the device."""
    L, k = ranked_BL.shape[-1], counts[0] if counts else 0
    if not 0 < k < L or any(count != k for count in counts):
        return None
    found_BL: Tensor = ranked_BL >= ranked_BL.kthvalue(L - k + 1, -1, keepdim=True).values
    return found_BL if found_BL.sum(-1).tolist() == counts else None
