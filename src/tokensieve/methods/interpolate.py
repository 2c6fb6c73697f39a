"""Spatial resampling to any number of tokens.

B crops, L tokens of a crop, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.grid import cells, rectangle
from tokensieve.functional.resample import MODES, resample
from tokensieve.methods.base import Method, keep_none
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Interpolate(Method):
    """Read the grid of tokens at as many evenly spread places as tokens asked for.

    mode: "bilinear" mixes the four tokens around each place; "area" takes the mean over its share
        of the grid, tokens on an edge counted by the part inside.

    The places form a grid where the budget allows one of the picture's shape; else lines of them
    differ by one place, so that the budget is met exactly. Tokens without a grid, or whose padding
    leaves no rectangle, are read as one line.

    A baseline. Differs from `torch.nn.functional.interpolate`, by which published ones resize: that
    gives grids only; where the budget is a grid both agree ("bilinear" without aligned corners).

    Raises `UnknownNameError` for another mode.
    """

    site: ClassVar[Site] = Site.EMBEDS

    mode: str = option("bilinear", choices=MODES)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        new_BLC, kept_BL = vision.tokens.clone(), keep_none(vision)
        for b, (k, valid_L) in enumerate(zip(counts.tolist(), vision.valid_BL, strict=True)):
            real = valid_L.nonzero()[:, 0]
            if k == len(real):
                kept_BL[b] = valid_L
                continue
            shape = rectangle(real, vision.grid) or (1, len(real))
            place = real[cells(shape, k)[1].to(real.device)]
            kept_BL[b, place] = True
            tokens_NC = vision.tokens[b] if bool(valid_L.all()) else vision.tokens[b, real]
            new_BLC[b, place] = resample(tokens_NC, shape, k, self.mode).to(new_BLC.dtype)
        return Reduction(kept_BL, new_BLC)
