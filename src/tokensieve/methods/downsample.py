"""A smaller picture: fewer tokens without any pruning, and better than many pruners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.grid import best_grid, grid_centres
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Downsample(Method):
    """Shrink the picture before the encoder, to the grid of best fit within the budget."""

    site: ClassVar[Site] = Site.PIXELS
    needs: ClassVar[frozenset[str]] = frozenset({"pixels", "grid"})
    exact: ClassVar[bool] = False

    def target_grid(self, grid: tuple[int, int], count: int) -> tuple[int, int]:
        """The grid of at most `count` tokens that keeps the picture's shape best."""
        return best_grid(grid, count)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        """Where the smaller picture's tokens lie in the full grid; the encoder gives the values."""
        full = vision.grid or (1, vision.tokens.shape[1])
        kept_BL = (counts >= vision.valid_BL.sum(-1))[:, None].expand_as(vision.valid_BL).clone()
        for kept_L, count in zip(kept_BL, counts.tolist(), strict=True):
            if count and not bool(kept_L.any()):
                kept_L[grid_centres(full, best_grid(full, count)).to(kept_L.device)] = True
        return Reduction(kept_BL & vision.valid_BL)
