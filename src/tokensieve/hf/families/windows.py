"""Qwen2.5-VL computes attention in windows and leaves its features in window order.

R rows, one per LLM token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def window_order(grids: Tensor, side: int, merge: int) -> Tensor:
    """(R,) LLM-order number of each row in window order.

    grids: (pictures, 3) frames, patch rows, patch columns; side: LLM tokens along a window.
    """
    order, start = [], 0
    for t, h, w in grids.tolist():
        rows, columns = h // merge, w // merge
        index = torch.arange(t * rows * columns).view(t, rows, columns)
        index = torch.nn.functional.pad(index, (0, -columns % side, 0, -rows % side), value=-1)
        index = index.view(t, -(-rows // side), side, -1, side).transpose(2, 3).flatten()
        order.append(index[index >= 0] + start)
        start += t * rows * columns
    return torch.cat(order)


def unwindow(model: Any, inputs: Mapping[str, Any], rows: Tensor) -> Tensor:
    """`rows` (R, C) of all pictures, put from window order into the LLM's."""
    vision = model.config.vision_config
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size
    order = window_order(inputs["image_grid_thw"], side, vision.spatial_merge_size)
    out = torch.empty_like(rows)
    out[order.to(rows.device)] = rows
    return out
