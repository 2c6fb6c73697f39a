"""A pre-norm Transformer encoder over visual tokens, blind to tokens that are not real.

B crops, L tokens, C input width, W stack width, H heads.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from tokensieve.errors import ConfigError, EncoderMismatchError
from tokensieve.nn.config import StackConfig
from tokensieve.types import Grid, Grids


class Layer(nn.Module):
    """Attention and feed-forward, each after a LayerNorm, each added to its input."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)

    def forward(
        self, x_BLW: Float[Tensor, "B L W"], valid_BL: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L W"]:
        B, L, W = x_BLW.shape
        qkv = self.qkv(self.norm_attention(x_BLW)).view(B, L, 3, self.heads, W // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mask = None if valid_BL is None else valid_BL[:, None, None, :]
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x_BLW = x_BLW + self.out(mixed.transpose(1, 2).reshape(B, L, W))
        fed: Tensor = self.down(gelu(self.up(self.norm_ffn(x_BLW))))
        return x_BLW + fed


class Positions(nn.Module):
    """Adds a position to each token: none, learned for one fixed grid, or 2-D sin-cos."""

    def __init__(self, kind: str, grid: Grid | None, width: int) -> None:
        super().__init__()
        self.kind, self.grid, self.width = kind, grid, width
        if kind == "learned":
            if grid is None:
                raise ConfigError(
                    "Expected an encoder with a fixed grid for learned positions. Got a varying "
                    "grid. Use positions='sincos'."
                )
            self.table = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)

    def forward(
        self, x_BLW: Float[Tensor, "B L W"], grid: Grids | None = None
    ) -> Float[Tensor, "B L W"]:
        L = x_BLW.shape[1]
        if self.kind == "none":
            return x_BLW
        if self.kind == "learned":
            if self.table.shape[0] != L or (grid is not None and grid != self.grid):
                raise EncoderMismatchError(
                    f"Expected crops of grid {self.grid}, for which positions were learned. Got "
                    f"{grid or L}. Use weights with positions='sincos' or 'none'."
                )
            return x_BLW + self.table
        if grid is not None and isinstance(grid[0], tuple):
            tables = [sincos_2d(one, self.width) for one in grid]
            padded = [nn.functional.pad(table, (0, 0, 0, L - len(table))) for table in tables]
            return x_BLW + torch.stack(padded).to(x_BLW)
        return x_BLW + sincos_2d(grid or self.grid or (1, L), self.width).to(x_BLW)


class Stack(nn.Module):
    """Linear in (where widths differ), positions, layers; no final norm."""

    def __init__(self, config: StackConfig, positions: str) -> None:
        super().__init__()
        C, W = config.encoder.width, config.stack_width
        self.inlet = nn.Identity() if C == W else nn.Linear(C, W)
        self.positions = Positions(positions, config.encoder.grid, W)
        self.layers = nn.ModuleList(
            Layer(W, config.stack_heads, config.stack_ffn) for _ in range(config.depth)
        )

    def forward(
        self,
        x_BLC: Float[Tensor, "B L C"],
        valid_BL: Bool[Tensor, "B L"] | None = None,
        grid: Grids | None = None,
    ) -> Float[Tensor, "B L W"]:
        if valid_BL is not None:  # zero weight times NaN padding would still be NaN
            x_BLC = x_BLC.masked_fill(~valid_BL[..., None], 0.0)
        x_BLW: Tensor = self.positions(self.inlet(x_BLC), grid)
        for layer in self.layers:
            x_BLW = layer(x_BLW, valid_BL)
        return x_BLW


def sincos_2d(grid: Grid, width: int) -> Float[Tensor, "L W"]:
    """Sines and cosines of row and column at geometric frequencies, a quarter of `width` each.

    Raises `ConfigError` unless 4 divides `width`.
    """
    if width % 4:
        raise ConfigError(f"Expected a width divisible by 4 for sincos positions. Got {width}.")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    rows, cols = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float32),
        torch.arange(grid[1], dtype=torch.float32),
        indexing="ij",
    )
    angles = [axis.reshape(-1, 1) * omega for axis in (rows, cols)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=-1)
