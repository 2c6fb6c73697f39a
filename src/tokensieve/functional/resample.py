"""A grid of tokens resampled to any number of samples.

L tokens, C width, H x W grid, k samples, n of them in a band of rows, S tokens in a line.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.functional.grid import shares

MODES = ("bilinear", "area")


def resample(
    tokens_LC: Float[Tensor, "L C"], grid: tuple[int, int], k: int, mode: str
) -> Float[Tensor, "k C"]:
    """In float32, in the order of `functional.grid.cells` of that grid.

    The grid is cut into the same bands of rows as there; bands are of equal height, the samples of
    a band of equal width, both in fractions of a token. "bilinear" reads the four tokens around a
    sample's centre, "area" the mean over its whole area. Where the cells form a grid, "bilinear"
    is `torch.nn.functional.interpolate(align_corners=False)`.
    """
    (H, W), per_band = grid, shares(grid, k)
    tokens_HWC = tokens_LC.view(H, W, -1)
    down_bH = _weights(len(per_band), H, mode)
    across = {n: _weights(n, W, mode).to(tokens_LC.device) for n in sorted(set(per_band))}
    parts = [tokens_LC.new_empty(0, tokens_LC.shape[1], dtype=torch.float32)]
    for weight_H, n in zip(down_bH, per_band, strict=True):
        rows = weight_H.nonzero()[:, 0]
        row_WC = torch.einsum(
            "r,rwc->wc",
            weight_H[rows].to(tokens_LC.device),
            tokens_HWC[int(rows[0]) : int(rows[-1]) + 1].float(),
        )
        parts.append(across[n] @ row_WC)
    return torch.cat(parts)


def _weights(n: int, size: int, mode: str) -> Float[Tensor, "n S"]:
    """How much each of n samples reads of each of `size` tokens in a line; rows sum to 1."""
    sample_n1 = torch.arange(n, dtype=torch.float64)[:, None] * size / max(n, 1)
    token_S, width = torch.arange(size, dtype=torch.float64), size / max(n, 1)
    if mode == "area":
        last = torch.minimum(token_S + 1, sample_n1 + width)
        overlap_nS = (last - torch.maximum(token_S, sample_n1)).clamp_min(0)
        return (overlap_nS / width).float()
    centre_n1 = (sample_n1 + width / 2 - 0.5).clamp(0, size - 1)
    return (1 - (token_S - centre_n1).abs()).clamp_min(0).float()
