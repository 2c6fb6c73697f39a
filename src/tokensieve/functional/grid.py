"""Even partitions of a grid of tokens into an exact number of cells.

B crops, L tokens, H x W grid, k cells.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import BudgetError


def cells(grid: tuple[int, int], k: int) -> tuple[Int[Tensor, "L"], Int[Tensor, "k"]]:
    """The cell (0 to k-1) of each token, and the token at each cell's centre.

    The grid is cut into about sqrt(k H / W) bands of rows; k is spread over the bands and each
    band cut into its share of near-equal columns. Every cell holds at least one token.

    Raises `BudgetError` unless 0 <= k <= H * W.
    """
    H, W = grid
    if not 0 <= k <= H * W:
        raise BudgetError(f"Expected 0 to {H * W} cells of a {H} x {W} grid. Got {k}.")
    label, centre = _cells(H, W, k)
    return torch.tensor(label, dtype=torch.long), torch.tensor(centre, dtype=torch.long)


@lru_cache(maxsize=1024)
def _cells(H: int, W: int, k: int) -> tuple[list[int], list[int]]:
    label, centre = [0] * (H * W), list[int]()
    if k == 0:
        return label, centre
    per_band = shares((H, W), k)
    for share, (top, bottom) in zip(per_band, _cuts(H, len(per_band)), strict=True):
        for left, right in _cuts(W, share):
            for row in range(top, bottom):
                for column in range(left, right):
                    label[row * W + column] = len(centre)
            centre.append((top + bottom - 1) // 2 * W + (left + right - 1) // 2)
    return label, centre


def shares(grid: tuple[int, int], k: int) -> list[int]:
    """Cells in each band of rows that `cells` cuts the grid into."""
    H, W = grid
    bands = min(H, k, max(math.ceil(k / W), round(math.sqrt(k * H / W)), 1))
    return [(i + 1) * k // bands - i * k // bands for i in range(bands)]


def _cuts(length: int, parts: int) -> list[tuple[int, int]]:
    """`length` cut into `parts` near-equal runs."""
    bounds = [i * length // parts for i in range(parts + 1)] if parts else []
    return list(pairwise(bounds))


def cells_of_crops(
    counts_B: Int[Tensor, "B"], valid_BL: Bool[Tensor, "B L"], grid: tuple[int, int] | None
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """The centre token of each token's cell (-1 where invalid), and the mask of centres.

    Crop b's real tokens are cut into `counts_B[b]` cells: on the grid where they fill a rectangle
    of it, else in their order.

    Raises `BudgetError` for a count above the number of real tokens.
    """
    centre_BL = torch.full(valid_BL.shape, -1, dtype=torch.long)
    kept_BL = torch.zeros(valid_BL.shape, dtype=torch.bool)
    for b, (k, valid_L) in enumerate(zip(counts_B.tolist(), valid_BL.cpu(), strict=True)):
        real = valid_L.nonzero()[:, 0]
        label, centre = cells(rectangle(real, grid) or (1, len(real)), k)
        if k:
            centre_BL[b, real] = real[centre[label]]
            kept_BL[b, real[centre]] = True
    return centre_BL.to(valid_BL.device), kept_BL.to(valid_BL.device)


def rectangle(real: Int[Tensor, "n"], grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of the rectangle the real tokens fill; None where they fill none."""
    if grid is None or len(real) == 0:
        return None
    row, column = real // grid[1], real % grid[1]
    size = int(row.max() - row.min()) + 1, int(column.max() - column.min()) + 1
    return size if size[0] * size[1] == len(real) else None


def add_neighbours(near_BL: Any, mask_BL: Any, grid: tuple[int, int]) -> None:
    """Make `near_BL` True above, below, left and right of each True of the mask; rows do not wrap
    around. Both are tensors or both arrays, without gaps in memory."""
    near_BHW, mask_BHW = near_BL.reshape(-1, *grid), mask_BL.reshape(-1, *grid)
    near_BHW[:, 1:] |= mask_BHW[:, :-1]
    near_BHW[:, :-1] |= mask_BHW[:, 1:]
    near_BHW[..., 1:] |= mask_BHW[..., :-1]
    near_BHW[..., :-1] |= mask_BHW[..., 1:]


def beside(
    grid: tuple[int, int], crops: int, tiles: tuple[int, int] | None = None
) -> Int[Tensor, "N 2"]:
    """The tokens left and right of each token of `crops` crops in a row, -1 where there is none.

    tiles: (rows, columns) of the crops behind the first: there the row of a page goes on in the
    next tile. Crops that are not as many stand each for itself.
    """
    H, W = grid
    index_NHW = torch.arange(crops * H * W).view(crops, H, W)
    pages = [index_NHW.flatten(0, 1)]
    if tiles is not None and crops == 1 + tiles[0] * tiles[1]:
        tiled = index_NHW[1:].view(*tiles, H, W).transpose(1, 2)
        pages = [index_NHW[0], tiled.reshape(tiles[0] * H, tiles[1] * W)]
    out_N2 = torch.full((crops * H * W, 2), -1)
    for page in pages:
        out_N2[page[:, 1:], 0] = page[:, :-1]
        out_N2[page[:, :-1], 1] = page[:, 1:]
    return out_N2


def grid_centres(full: tuple[int, int], small: tuple[int, int]) -> Int[Tensor, "k"]:
    """Tokens of the grid `full` under the centres of the cells of the grid `small`."""
    rows, columns = (
        ((torch.arange(n) + 0.5) * size / n).long() for n, size in zip(small, full, strict=True)
    )
    return (rows[:, None] * full[1] + columns).flatten()


def coarse_cells(grid: tuple[int, int], cells: int) -> Int[Tensor, "L"]:
    """The cell of each token when the grid is cut into `cells` bands of rows and of columns (fewer
    where it has fewer)."""
    H, W = grid
    rows, columns = min(cells, H), min(cells, W)
    row_H, column_W = torch.arange(H) * rows // H, torch.arange(W) * columns // W
    return (row_H[:, None] * columns + column_W).flatten()


def best_grid(full: tuple[int, int], count: int) -> tuple[int, int]:
    """The grid of at most `count` tokens nearest to `full` in shape and large in area.

    Maximises area times the smaller of the two ratios of aspects; more area on a tie.
    """
    H, W = full

    def worth(shape: tuple[int, int]) -> tuple[float, int]:
        h, w = shape
        aspect = (h * W) / (w * H)
        return h * w * min(aspect, 1 / aspect), h * w

    return max(((h, min(W, count // h)) for h in range(1, min(H, count) + 1)), key=worth)
