"""Projectors that hand the LLM fewer, fused tokens: spatial and multi-block token fusion.

B pictures, M encoder blocks, C channels of a block, L = H * W tokens of the encoder, k kernel side,
E fused tokens of a k x k cell, N = L / k^2 * E tokens of the LLM, D width of the LLM.
Everything is a 1x1 convolution or stays inside a cell, so a linear layer over channels says it all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from tokensieve.errors import ConfigError
from tokensieve.nn.config import Config, option

SPREAD = 4  # hidden channels of both parts' 1x1 convolutions, per channel they come in with


@dataclass(frozen=True)
class FusionConfig(Config):
    """Shape of a projector. The four kinds are the arms of the paper's ablation."""

    width: int = option(1024, "C, channels of one encoder block.")
    out_width: int = option(4096, "D, width of the LLM.")
    rows: int = option(24, "H, rows of the encoder's grid.")
    columns: int = option(24, "W, columns of the encoder's grid.")
    blocks: int = option(1, "M, encoder blocks read; above 1 multi-block fusion makes one of them.")
    kind: str = option("fusion", "fusion (STF), concat, avgpool, or mlp (every token, as LLaVA).")
    kernel: int = option(2, "k, side of the cells of neighbouring tokens that become one; 1: mlp.")
    fused: int = option(1, "E, tokens that become of a cell.")
    form: str = option(
        "paper", "paper (k x k convolution, last activation) or release (unfold, none)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "out_width", "rows", "columns", "blocks", "kernel", "fused"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ConfigError(f"Expected `{name}` as a number of at least 1. Got {size!r}.")
        if self.kind == "mlp" and self.kernel != 1:
            raise ConfigError(
                f"Expected kernel 1 for the kind 'mlp', which keeps every token. Got {self.kernel}."
            )
        if self.kind != "fusion" and self.fused != 1:
            raise ConfigError(
                f"Expected 1 fused token for the kind '{self.kind}'. Got {self.fused}. Only "
                "'fusion' makes several of a cell."
            )
        check_divides(self.kernel, (self.rows, self.columns))
        if (self.kernel**2 * self.width) % self.fused:
            raise ConfigError(
                f"Expected `fused` to divide the {self.kernel**2 * self.width} channels of a "
                f"cell. Got {self.fused}."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rows, self.columns

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.rows // self.kernel, self.columns // self.kernel

    @property
    def tokens(self) -> int:
        """N."""
        return self.cells[0] * self.cells[1] * self.fused

    @property
    def row_width(self) -> int:
        """Channels of the rows, one for each of the N tokens, that enter `spatial.mlp`."""
        gathered = self.kernel**2 if self.kind in ("fusion", "concat") else 1
        return gathered * self.width // self.fused

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the N tokens; None where several stand for one cell."""
        return self.cells if self.fused == 1 else None


def check_divides(kernel: int, grid: tuple[int, int]) -> None:
    """Raise `ConfigError` unless both sides of the grid are multiples of the kernel."""
    if any(side % kernel for side in grid):
        common = math.gcd(*grid)
        fits = ", ".join(str(k) for k in range(1, common + 1) if common % k == 0)
        raise ConfigError(
            f"Expected a kernel that divides the encoder's grid of {grid[0]} x {grid[1]} tokens. "
            f"Got {kernel}. Kernels that do: {fits}."
        )


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


class MultiBlockFusion(nn.Module):
    """MBTF of [1]: what several encoder blocks say of a token, as one token of a block's width.

    1x1 convolution M C -> 4 C, GELU, 1x1 convolution 4 C -> C, GELU. The release's form has no
    activation at the end.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, width: int, blocks: int, form: str = "paper") -> None:
        super().__init__()
        self.channels = blocks * width
        self.mlp = _two_layers(blocks * width, SPREAD * width, width, activated=form == "paper")

    def forward(self, blocks_BLX: Float[Tensor, "B L X"]) -> Float[Tensor, "B L C"]:
        """Blocks side by side on the channels, first block first: X = M C.

        Raises `ConfigError` for another number of channels.
        """
        _check_channels(blocks_BLX, self.channels)
        fused: Tensor = self.mlp(blocks_BLX)
        return fused


class SpatialFusion(nn.Module):
    """STF of [1]: each k x k cell of tokens becomes E tokens of the LLM's width.

    k x k convolution of stride k, C -> k^2 C, GELU; the channels split into E tokens; 1x1
    convolution to 4 times as many, GELU; 1x1 convolution to D, GELU. The release's form gathers
    the cell by a parameter-free unfold, with no activation there nor at the end.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(
        self, width: int, out_width: int, kernel: int = 2, fused: int = 1, form: str = "paper"
    ) -> None:
        super().__init__()
        self.kernel, self.fused = kernel, fused
        channels = kernel**2 * width
        self.convolution = (
            nn.Conv2d(width, channels, kernel, stride=kernel) if form == "paper" else None
        )
        inner = channels // fused
        self.mlp = _two_layers(inner, SPREAD * inner, out_width, activated=form == "paper")

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B N D"]:
        """Tokens in reading order; cells in reading order, the E tokens of a cell together.

        Raises `ConfigError` for a grid that the tokens do not fill or the kernel does not divide.
        """
        fused: Tensor = self.mlp(self.gather(tokens_BLC, grid))
        return fused

    def gather(self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]) -> Tensor:
        """What enters the 1x1 convolutions, one row a token: (B, N, k^2 C / E)."""
        if self.convolution is None:
            cells = unfold(tokens_BLC, grid, self.kernel)
        else:
            check_divides(self.kernel, grid)
            found = self.convolution(as_map(tokens_BLC, grid))
            cells = nn.functional.gelu(found).flatten(2).mT
        B, cells_of_picture, channels = cells.shape
        return cells.reshape(B, cells_of_picture * self.fused, channels // self.fused)


class TokenConcatProjector(nn.Module):
    """The channels of a k x k cell side by side, then LLaVA's two-layer MLP; an arm of [1]'s
    ablation.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, width: int, out_width: int, kernel: int = 2) -> None:
        super().__init__()
        self.kernel = kernel
        self.mlp = _two_layers(kernel**2 * width, out_width, out_width)

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B N D"]:
        """As `SpatialFusion`."""
        projected: Tensor = self.mlp(unfold(tokens_BLC, grid, self.kernel))
        return projected


class AvgPoolProjector(nn.Module):
    """The mean of a k x k cell, then LLaVA's two-layer MLP; an arm of [1]'s ablation.

    With kernel 1 it is LLaVA's projector: every token by itself.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, width: int, out_width: int, kernel: int = 2) -> None:
        super().__init__()
        self.kernel = kernel
        self.mlp = _two_layers(width, out_width, out_width)

    def forward(
        self, tokens_BLC: Float[Tensor, "B L C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B N D"]:
        """As `SpatialFusion`."""
        check_divides(self.kernel, grid)
        map_BCHW = as_map(tokens_BLC, grid)
        pooled = nn.functional.avg_pool2d(map_BCHW, self.kernel).flatten(2).mT
        projected: Tensor = self.mlp(pooled)
        return projected


class FusionProjector(nn.Module):
    """A VLM's projector: multi-block fusion where several blocks are read, then tokens of the LLM.

    `spatial.mlp` is what each token of the LLM goes through by itself, one row in, one row out.

    [1] Learning Compact Vision Tokens for Efficient Large Multimodal Models, arXiv 2506.07138.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        C, D, k = config.width, config.out_width, config.kernel
        self.blocks = MultiBlockFusion(C, config.blocks, config.form) if config.blocks > 1 else None
        self.spatial: SpatialFusion | TokenConcatProjector | AvgPoolProjector
        if config.kind == "fusion":
            self.spatial = SpatialFusion(C, D, k, config.fused, config.form)
        elif config.kind == "concat":
            self.spatial = TokenConcatProjector(C, D, k)
        else:
            self.spatial = AvgPoolProjector(C, D, k)

    def forward(self, blocks_BLX: Float[Tensor, "B L X"]) -> Float[Tensor, "B N D"]:
        """Hidden states of the blocks read, side by side on the channels, without CLS: X = M C.

        Raises `ConfigError` for another number of tokens or channels than the config's.
        """
        _check_channels(blocks_BLX, self.config.blocks * self.config.width)
        tokens_BLC = blocks_BLX if self.blocks is None else self.blocks(blocks_BLX)
        projected: Tensor = self.spatial(tokens_BLC, self.config.grid)
        return projected


def even_blocks(depth: int, count: int) -> tuple[int, ...]:
    """`count` evenly spaced blocks of `depth`, the last one included: (3, 6, ..., 24) for 8 of 24.

    As indices into an encoder's `hidden_states`, where 0 is what enters the first block. Raises
    `ConfigError` for more blocks than there are.
    """
    if not 1 <= count <= depth:
        raise ConfigError(f"Expected 1 to {depth} blocks of the encoder. Got {count}.")
    return tuple((i + 1) * depth // count for i in range(count))


def _two_layers(wide: int, hidden: int, out: int, *, activated: bool = False) -> nn.Sequential:
    last = [nn.GELU()] if activated else []
    return nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, out), *last)


def _check_channels(blocks_BLX: Tensor, channels: int) -> None:
    if blocks_BLX.shape[-1] != channels:
        raise ConfigError(
            f"Expected {channels} channels, those of all encoder blocks read side by side. Got "
            f"{blocks_BLX.shape[-1]}. Read the blocks that the projector was made for."
        )
