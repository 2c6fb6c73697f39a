"""PixelPrune: patches that their neighbours predict, gone before the encoder.

B crops, L tokens of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.pixels import pixels_under
from tokensieve.functional.prediction import prediction_error
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Site, TextContext, VisionTokens


@dataclass(frozen=True)
class PixelPrune(ScoringMethod):
    """Drop the patches that the patches on their left and above predict [1].

    tau: how far a patch may be from its prediction in its worst pixel value, in the units in which
        the encoder gets them. 0, as published: only what is the same to the bit is dropped.

    A patch here is what makes one token (of Qwen-VL 2 x 2 patches). Of the left one A, the one
    above B and the corner C: if C equals A, B is the prediction; if C equals B, A; else there is
    none. "Equals" is within tau as well. In the paper there is no budget: what is not predicted
    stays. Here `keep` is the most that stays, those furthest from their neighbours first; keep=1.0
    is the paper's.

    [1] PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding,
    arXiv 2604.00886.
    """

    site: ClassVar[Site] = Site.PATCHES
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})
    exact: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = False
    least: ClassVar[float] = 0.0
    paper: ClassVar[str | None] = (
        "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding, "
        "arXiv 2604.00886"
    )

    tau: float = option(0.0, low=0.0)

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        """The distance to the prediction, or to the nearer neighbour; -1 where it is predicted.
        Tokens without a grid are one line."""
        patches_BLP = pixels_under(vision)
        scores_BL: Tensor = patches_BLP.new_full(patches_BLP.shape[:2], -1.0)
        for b, real_L in enumerate(vision.valid_BL):
            line = real_L.nonzero()[:, 0]
            at = line if vision.grid is None else torch.arange(len(real_L), device=real_L.device)
            grid = vision.grid or (1, len(line))
            if len(line):
                error, told = prediction_error(patches_BLP[b, at], grid, real_L[at], self.tau)
                scores_BL[b, at] = error.masked_fill(told, -1.0)
        return scores_BL
