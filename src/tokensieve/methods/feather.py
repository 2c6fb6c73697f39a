"""Attention without the bias of rotary positions, and an even grid beside it.

B crops, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.grid import cells_of_crops
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.schedules.base import scaled_layers
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens

_EARLY, _LATE = 8 / 32, 16 / 32


@dataclass(frozen=True)
class Feather(Method):
    """Before block 8 of 32 an even grid and the tokens the last token attends to most; before block
    16 fewer of them, by attention alone; attention is taken without rotary positions [1].

    With rotary positions the last token prefers the lower end of the picture. `keep` is what
    remains after the second step; the first keeps its cube root, so that the second keeps the
    square of the first's share.

    uniform: whether the grid takes part; None: at layers up to 3/8 of the depth.
    stride: the grid holds one token of stride * stride, but at most half of what is kept.
    as_released: the softmax of attention goes over visual tokens only, as in the released code; in
        the paper over all that the last token sees. A head that looks at text then counts as much
        as one that looks at the picture.

    Differs from the paper: the grid is part of the budget, not added to it, and lies at the centres
    of even cells, so that it exists for any count; without a known grid it is even in order.

    Raises `ConfigError` for a stride below 1.

    [1] Feather the Throttle, arXiv 2412.13180.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "FEATHER, arXiv 2412.13180"

    uniform: bool | None = None
    stride: int = option(3, low=1, high=4096)
    as_released: bool = False

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        layers = scaled_layers(depth, (_EARLY, _LATE))
        if isinstance(keep, int) or len(layers) < 2:  # the first step's count is not known here
            return {layers[0]: keep}
        return {layers[0]: keep ** (1 / 3), layers[1]: keep}

    def bind(self, encoder: EncoderInfo) -> Feather:
        if self.uniform is not None:
            return self
        return replace(self, uniform=encoder.layer <= (_EARLY + _LATE) / 2 * encoder.depth)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        kind = Kind.LAST_TO_VISUAL if self.as_released else Kind.LAST_UNROTATED
        return {"attention": Signal(kind)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        attention_BL, valid_BL = vision.signal("attention").float(), vision.valid_BL
        even_BL = torch.zeros_like(valid_BL)
        if self.uniform is not False:
            grid = torch.minimum(counts // 2, valid_BL.sum(-1) // self.stride**2)
            _, even_BL = cells_of_crops(grid, valid_BL, vision.grid)
        free_BL = valid_BL & ~even_BL
        return Reduction(even_BL | topk_mask(attention_BL, counts - even_BL.sum(-1), free_BL))
