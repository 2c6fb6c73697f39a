"""Crops that tile a picture, and a first one that shows it whole.

n tiles, L tokens of each, H x W grid of a crop.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sums_under_tiles(
    whole_HW: Float[Tensor, "H W"], valid_nL: Bool[Tensor, "n L"], tiles: tuple[int, int]
) -> Float[Tensor, "n"]:
    """What of the values of the whole view falls into each of the `tiles` (rows, columns).

    valid: the tiles' real tokens. Together they are the picture, which the whole view shows from
    edge to edge; padding around it belongs to no part of the view. A value falls where the centre
    of its token lies.
    """
    H, W = whole_HW.shape
    rows, columns = tiles
    canvas = valid_nL.view(rows, columns, H, W).transpose(1, 2).reshape(rows * H, columns * W)
    row_H, column_W = _tile_of(canvas.any(1), H), _tile_of(canvas.any(0), W)
    tile_HW = row_H[:, None] * columns + column_W
    return whole_HW.new_zeros(rows * columns).index_add_(0, tile_HW.flatten(), whole_HW.flatten())


def _tile_of(real: Tensor, size: int) -> Tensor:
    """Along one axis: the tile in which each of `size` cells of the whole view is centred."""
    span = real.nonzero()[:, 0]
    first, last = (int(span[0]), int(span[-1])) if len(span) else (0, len(real) - 1)
    centre = (torch.arange(size, device=real.device) + 0.5) * ((last + 1 - first) / size)
    return ((first + centre) // size).long()
