"""Where sorted scores bend.

B crops, L tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def above_knee(
    scores_BL: Float[Tensor, "B L"], valid_BL: Bool[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """Tokens whose score is above the knee of their crop's scores; the best one always.

    Scores are sorted, the highest first, and drawn over their rank; the knee is the point farthest
    from the line between first and last, the earlier of two. On a straight line that is the first.
    """
    found_BL = torch.zeros_like(valid_BL)
    for b in range(len(scores_BL)):
        own = scores_BL[b][valid_BL[b]].double()
        if not len(own):
            continue
        ranked = own.sort(descending=True).values
        rank = torch.arange(len(ranked), device=own.device, dtype=own.dtype)
        # twice the triangle's area is the distance times the line's length, which is one for all
        slope, run = ranked[-1] - ranked[0], rank[-1] - rank[0]
        area = (slope * (rank - rank[0]) - run * (ranked - ranked[0])).abs()
        knee = ranked[int(area.round(decimals=9).argmax())]
        found_BL[b] = valid_BL[b] & (scores_BL[b] > min(knee, ranked[0]))
        if not bool(found_BL[b].any()):
            found_BL[b] = valid_BL[b] & (scores_BL[b] == ranked[0])
    return found_BL
