"""LLaVolta's compressor: inside the LLM, runs of visual tokens become their mean.

B crops, L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.grid import cells_of_crops
from tokensieve.functional.merge import mean_at
from tokensieve.methods.base import Method, merged
from tokensieve.schedules.base import geometric
from tokensieve.types import Reduction, Site, TextContext, VisionTokens

_PLACES = (2 / 32,)


@dataclass(frozen=True)
class Llavolta(Method):
    """From layer 2 of 32 on, consecutive visual tokens become their mean, so many as are asked for
    [1].

    Meant for training, from heavy to none: `tokensieve train fusion --sieve llavolta
    --keep "0.125>0.5>1" --set "sieve.layer=2>16>none"`. The layer moves with the LLM's depth.

    rows: of a grid, runs along its rows, as the tokens stand in the prompt; False: even cells.

    Differs from the paper: any budget, where the paper has strides; a run stands in the place of
    the token in its middle; the layer and the numbers above are a choice made here.

    [1] Efficient Large Multi-modal Models via Visual Context Compression (LLaVolta),
    arXiv 2406.20092.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "LLaVolta, arXiv 2406.20092"

    rows: bool = True

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        grid = None if self.rows else vision.grid
        centre_BL, kept_BL = cells_of_crops(counts, vision.valid_BL, grid)
        return merged(vision, kept_BL, mean_at(vision.tokens, centre_BL, rest=False), centre_BL)
