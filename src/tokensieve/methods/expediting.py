"""Expediting ViT: behind one layer of the encoder, clusters of neighbours take the tokens' place.

B crops, L tokens, C width, k clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.budget import EPS
from tokensieve.fields import option
from tokensieve.functional.cluster import cells_near, soft_clusters
from tokensieve.functional.grid import cells, rectangle
from tokensieve.methods.base import Method, merged
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Expediting(Method):
    """Behind one encoder layer, cluster neighbouring tokens; the layers above run on the centres
    alone [1].

    The grid is cut into as many even cells as the budget says; the cells' means are the first
    centres. In each round every token is shared among the centres near it, more the closer it is to
    one in the encoder's space, and the centres become the means of what is shared with them.

    after: the layer, as a part of those up to the one the VLM reads, rounded up.
    rounds: of clustering. window: a token is shared among the window x window nearest cells.
    sharpness: shares are exp(-sharpness * squared distance), divided by their sum.

    Differs from the paper: cells of any number, so that the budget is exact; the LLM reads the
    centres, and no token is put back, which the paper does for maps of the whole picture.

    [1] Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning,
    arXiv 2210.01035.
    """

    site: ClassVar[Site] = Site.ENCODER
    paper: ClassVar[str | None] = "Expediting Large-Scale Vision Transformer, arXiv 2210.01035"

    after: float = option(10 / 24, low=0, high=1)
    rounds: int = option(5, low=0, high=1000)
    window: int = option(7, low=1, high=2**12)
    sharpness: float = option(0.05, low=0)

    def block_counts(self, length: int, keep: int, blocks: int) -> list[int]:
        at = min(max(math.ceil(self.after * blocks - EPS), 1), blocks) - 1
        return [length if block < at else keep for block in range(blocks)]

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        valid_BL, new_BLC = vision.valid_BL, vision.tokens.clone()
        kept_BL = torch.zeros_like(valid_BL)
        for b, count in enumerate(counts.tolist()):
            real = valid_BL[b].cpu().nonzero()[:, 0]
            grid = rectangle(real, vision.grid) or (1, len(real))
            cell_L, centre_k = cells(grid, count)
            at = real[centre_k].to(new_BLC.device)
            kept_BL[b, at] = True
            if count in (0, len(real)):
                continue
            own_LC = vision.tokens[b, real.to(new_BLC.device)].float()
            new_BLC[b, at] = self._centres(own_LC, cell_L, grid, count).to(new_BLC.dtype)
        return merged(vision, kept_BL, new_BLC)

    def _centres(self, own_LC: Tensor, cell_L: Tensor, grid: tuple[int, int], k: int) -> Tensor:
        label_L = cell_L.to(own_LC.device)
        first_kC = own_LC.new_zeros(k, own_LC.shape[1]).index_add_(0, label_L, own_LC)
        first_kC /= torch.bincount(label_L, minlength=k)[:, None]
        near_Lk = cells_near(cell_L, grid, k, self.window).to(own_LC.device)
        return soft_clusters(own_LC, near_Lk, first_kC, self.sharpness, self.rounds)
