"""Top-k as a mask, with a count per row.

B rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
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
    if ties_BL is None and is_light(scores_BL):
        scores = scores_BL.detach().float().numpy()
        return torch.from_numpy(top_of_array(scores, counts_B.tolist(), valid_BL.numpy()))
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


def is_light(tensor: Tensor) -> bool:
    """Whether many small steps on it are better taken in NumPy, which begins each in less time."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def top(scores_BL: Any, counts: Sequence[int], valid_BL: Any = None) -> Any:
    """`topk_mask` of a tensor, or in NumPy of an array. valid None: all are."""
    if not isinstance(scores_BL, Tensor):
        return top_of_array(scores_BL, counts, valid_BL)
    if valid_BL is None:
        valid_BL = torch.ones_like(scores_BL, dtype=torch.bool)
    return topk_mask(scores_BL, torch.tensor(counts, device=scores_BL.device), valid_BL)


def top_of_array(
    scores: NDArray[np.float32], counts: Sequence[int], valid: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """`topk_mask` in NumPy; valid None: all are. Where all rows want as many, the k-th highest is
    found without sorting; what is not below it is the answer unless there are ties.
    """
    L = scores.shape[-1]
    if L == 0 or not counts:
        return np.zeros(scores.shape, dtype=np.bool_)
    if valid is not None and valid.all():
        valid = None
    if valid is not None:
        scores = np.where(valid, np.maximum(scores, _LOWEST), -np.inf)
    k = min(max(counts[0], 0), L)
    if k > 0 and all(count == counts[0] for count in counts):
        ranked = scores.copy()
        ranked.partition(L - k, -1)
        found: NDArray[np.bool_] = scores >= ranked[:, L - k, None]
        if np.count_nonzero(found) == k * len(counts):  # each row has k or more
            return found if valid is None else found & valid
        kth = ranked[:, L - k, None]
    else:
        at = (L - np.array(counts)[:, None]).clip(0, L - 1)
        kth = np.take_along_axis(np.sort(scores, -1), at, -1)
    above, like = scores > kth, scores == kth
    room = np.array(counts)[:, None] - above.sum(-1, keepdims=True)
    found = above | (like & (like.cumsum(-1) <= room))
    return found if valid is None else found & valid
