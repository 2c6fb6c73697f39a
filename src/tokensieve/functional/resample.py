"""A grid of tokens resampled to any number of samples.

L tokens, C width, H x W grid, k samples, n of them in a band of rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.functional.grid import shares

MODES = ("bilinear", "area")


def resample(tokens_LC: Float[Tensor, "L C"], grid: tuple[int, int], k: int, mode: str) -> Tensor:
    """(k, C) samples in float32, in the order of `functional.grid.cells` of that grid.

    The grid is cut into the same bands of rows as there; bands are of equal height, the samples of
    a band of equal width, both in fractions of a token. "bilinear" reads the four tokens around a
    sample's centre, "area" the mean over its whole area. Where the cells form a grid, "bilinear"
    is `torch.nn.functional.interpolate(align_corners=False)`.
    """
    H, W = grid
    per_band = shares(grid, k)
    tokens_HWC = tokens_LC.view(H, W, -1)
    samples = []
    for i, n in enumerate(per_band):
        rows, weight_r = _weights(i, len(per_band), H, mode)
        picked_rWC = tokens_HWC[rows].float()
        band_WC = torch.einsum("r,rwc->wc", weight_r.to(picked_rWC.device), picked_rWC)
        across_nW = torch.zeros(n, W)
        for j in range(n):
            columns, weight = _weights(j, n, W, mode)
            across_nW[j, columns] = weight
        samples.append(across_nW.to(band_WC.device) @ band_WC)
    if not samples:
        return tokens_LC.new_zeros(0, tokens_LC.shape[1], dtype=torch.float32)
    return torch.cat(samples)


def _weights(i: int, n: int, size: int, mode: str) -> tuple[slice, Float[Tensor, "r"]]:
    """Of `size` tokens in a line, those that sample i of n reads, and how much of each."""
    if mode == "area":
        low, high = i * size / n, (i + 1) * size / n
        first, last = i * size // n, -(-(i + 1) * size // n)
        edge = torch.arange(first, last, dtype=torch.float64)
        overlap = (edge + 1).clamp_max(high) - edge.clamp_min(low)
        return slice(first, last), (overlap / (high - low)).float()
    centre = min(max((i + 0.5) * size / n - 0.5, 0.0), size - 1.0)
    first = min(int(centre), max(size - 2, 0))
    share = centre - first
    return slice(first, first + 2), torch.tensor([1 - share, share][: size - first])
