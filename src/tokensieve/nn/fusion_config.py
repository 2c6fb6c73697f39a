"""The shape of a projector that fuses tokens, and the encoder blocks that it reads.

M encoder blocks, C channels of a block, H x W tokens of the encoder, k kernel side, E fused tokens
of a k x k cell, N tokens of the LLM, D width of the LLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokensieve.errors import ConfigError
from tokensieve.fields import option
from tokensieve.nn.config import CHOICES, Config


@dataclass(frozen=True)
class FusionConfig(Config):
    """Shape of a projector. The kinds are the arms of the paper's ablation, TokenFLEX's and
    QueCC's."""

    width: int = option(1024, "C, channels of one encoder block.", low=1, high=2**16)
    out_width: int = option(4096, "D, width of the LLM.", low=1, high=2**17)
    rows: int = option(24, "H, rows of the encoder's grid.", low=1, high=2**12)
    columns: int = option(24, "W, columns of the encoder's grid.", low=1, high=2**12)
    blocks: int = option(
        1, "M, encoder blocks read; above 1 multi-block fusion makes one of them.", low=1, high=512
    )
    kind: str = option(
        "fusion",
        "fusion (STF), concat, avgpool, mlp (every token, as LLaVA), swiglu (TokenFLEX), quecc "
        "(by the question).",
        choices=CHOICES["kind"],
    )  # fmt: skip
    kernel: int = option(
        2, "k, side of the cells of neighbouring tokens that become one; 1: mlp.",
        low=1, high=2**12,
    )  # fmt: skip
    fused: int = option(1, "E, tokens that become of a cell.", low=1, high=2**16)
    form: str = option(
        "paper", "paper (k x k convolution, last activation) or release (unfold, none).",
        choices=CHOICES["form"],
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind in ("mlp", "swiglu") and self.kernel != 1:
            raise ConfigError(
                f"Expected kernel 1 for the kind '{self.kind}', which keeps every token. Got "
                f"{self.kernel}."
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


def spaced_blocks(depth: int, count: int) -> tuple[int, ...]:
    """`count` evenly spaced blocks of `depth`, the last one included: (3, 6, ..., 24) for 8 of 24.

    As indices into an encoder's `hidden_states`, where 0 is what enters the first block. Raises
    `ConfigError` for more blocks than there are.
    """
    if not 1 <= count <= depth:
        raise ConfigError(f"Expected 1 to {depth} blocks of the encoder. Got {count}.")
    return tuple((i + 1) * depth // count for i in range(count))


def topmost(blocks: Sequence[int], depth: int) -> int:
    """Where in `blocks`, indices into the hidden states of `depth` blocks, the highest stands."""
    return max(range(len(blocks)), key=lambda i: blocks[i] % (depth + 1))
