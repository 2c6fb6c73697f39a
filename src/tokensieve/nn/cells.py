"""Tokens in reading order as a map, and as cells of neighbours.

B pictures, C channels, L = H * W tokens, k kernel side.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from tokensieve.errors import ConfigError
from tokensieve.nn.fusion_config import check_divides


def unfold(tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int], kernel: int) -> Tensor:
    """Cells in reading order, (B, L / k^2, C k^2): of each channel its k^2 tokens, in that order.

    Raises `ConfigError` for a grid that the tokens do not fill or the kernel does not divide.
    """
    check_divides(kernel, grid)
    map_BCHW = as_map(tokens_BLC, grid)
    return nn.functional.unfold(map_BCHW, kernel, stride=kernel).mT


def as_map(tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]) -> Tensor:
    """Tokens in reading order as (B, C, H, W). Raises `ConfigError` unless they fill the grid."""
    B, L, C = tokens_BLC.shape
    if grid[0] * grid[1] != L:
        raise ConfigError(
            f"Expected {grid[0]} x {grid[1]} tokens of a picture, without CLS. Got {L}. Give the "
            "encoder pictures of the size that the projector was made for."
        )
    return tokens_BLC.mT.reshape(B, C, *grid)
