"""What stands in the cells that tokens fall into.

B crops, L tokens of a crop.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def any_of_cells(cell_BL: Int[Tensor, "B L"], mask_BL: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Whether any token of a token's cell is in the mask."""
    found_BL = torch.zeros_like(cell_BL).scatter_add_(1, cell_BL, mask_BL.long())
    return found_BL.gather(1, cell_BL) > 0


def best_of_cells(
    score_BL: Float[Tensor, "B L"], cell_BL: Int[Tensor, "B L"], mask_BL: Bool[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """The highest of each cell's tokens in the mask, the earlier on a tie."""
    score_BL = score_BL.masked_fill(~mask_BL, -torch.inf)
    order_BL = score_BL.argsort(dim=-1, descending=True, stable=True)
    place_BL = order_BL.argsort(dim=-1)  # 0 for the highest of the crop
    lowest_BL = torch.full_like(cell_BL, cell_BL.shape[1])
    lowest_BL.scatter_reduce_(1, cell_BL, place_BL, "amin")
    return (place_BL == lowest_BL.gather(1, cell_BL)) & mask_BL
