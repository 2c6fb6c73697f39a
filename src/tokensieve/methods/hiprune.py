"""Tokens that a middle layer attends to, their neighbours, and those of a deep layer.

B crops, L tokens, H x W grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.blocks import blocks_run
from tokensieve.functional.counts import rounded
from tokensieve.functional.grid import add_neighbours
from tokensieve.functional.topk import is_light, top
from tokensieve.methods.base import Method
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)


@dataclass(frozen=True)
class HiPrune(Method):
    """Anchors of a middle layer, their four neighbours, the rest by a deep layer [1].

    A token's attention is the mean that all tokens pay to it. Anchors: the highest of the middle
    layer, a fifth of `alpha` of the budget (half a token rounded up). Buffers: the tokens above,
    below, left and right of them. Registers: the highest of the deep layer, the one the VLM reads,
    among all others. Anchors come first where a budget is too small, then buffers in the order of
    the deep layer. Without a grid there are no buffers.

    alpha: share of the budget that anchors and buffers take at the most.
    middle: the middle layer's depth, as a share of the encoder's. The paper's layer 9 of 24 (16 of
        32 for Qwen2.5-VL), counted from 1, is block 8 (15), counted from 0.

    as_released: the tokens before and after an anchor are its buffers even across the end of a
        row, as in the released code, which also takes every grid for 24 wide.

    Records of nano's first model were made with the block after.

    Raises `ConfigError` for a share outside 0 to 1.

    [1] HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language
    Models, arXiv 2508.00553.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "HiPrune, arXiv 2508.00553"

    alpha: float = option(0.1, low=0, high=1)
    middle: float = option(9 / 24, low=0, high=1)
    as_released: bool = False

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        middle = blocks_run(self.middle, encoder.depth, most=encoder.block + 1) - 1
        return {
            "middle": Signal(Kind.RECEIVED_ATTENTION, middle),
            "deep": Signal(Kind.RECEIVED_ATTENTION, encoder.block),
        }

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        middle_BL, deep_BL = (self._light(vision.signal(name)) for name in ("middle", "deep"))
        valid_BL = None if vision.valid is None else self._light(vision.valid)
        budgets = counts.tolist()
        anchors = [rounded(count, self.alpha / 5) for count in budgets]
        kept_BL = top(middle_BL, anchors, valid_BL)
        if vision.grid is not None:
            near_BL = self._near(kept_BL, vision.grid)
            if all(5 * some <= count for some, count in zip(anchors, budgets, strict=True)):
                where = torch.where if isinstance(deep_BL, Tensor) else np.where
                return self._made(top(where(near_BL, math.inf, deep_BL), budgets, valid_BL))
            buffers_BL = near_BL & ~kept_BL  # there may not be room for all
            buffers_BL = buffers_BL if valid_BL is None else buffers_BL & valid_BL
            room = [count - some for some, count in zip(anchors, budgets, strict=True)]
            kept_BL = kept_BL | top(deep_BL, room, buffers_BL)
        rest = (counts - self._made(kept_BL).counts_B).tolist()
        others_BL = ~kept_BL if valid_BL is None else valid_BL & ~kept_BL
        return self._made(kept_BL | top(deep_BL, rest, others_BL))

    def _near(self, anchor_BL: Any, grid: tuple[int, int]) -> Any:
        """Anchors and what is beside them."""
        near_BL = anchor_BL | anchor_BL  # a copy
        add_neighbours(near_BL, anchor_BL, grid)
        if self.as_released:
            near_BL[:, 1:] |= anchor_BL[:, :-1]
            near_BL[:, :-1] |= anchor_BL[:, 1:]
        return near_BL

    @staticmethod
    def _light(values: Tensor) -> Any:
        """As an array where many small steps are quicker so."""
        if not is_light(values):
            return values
        return (values.float() if values.is_floating_point() else values).detach().numpy()

    @staticmethod
    def _made(kept_BL: Any) -> Reduction:
        return Reduction(torch.as_tensor(kept_BL))
