"""FLOPs counted while a model runs, for any model, to set beside the formulas.

B batch, H heads, Q queries, K keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def measured_flops(run: Callable[[], Any]) -> int:
    """FLOPs (two per multiply-add) of one call of `run`, without gradients.

    Counts matrix products, convolutions and attention in full, by PyTorch's own counter.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_on_cpu())
    with torch.no_grad(), counter:
        run()
    return int(counter.get_total_flops())


def _on_cpu() -> dict[Any, Any]:
    """The CPU's attention kernel, which PyTorch's counter leaves out without a word."""
    kernel = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return {} if kernel is None else {kernel: _attention}


def _attention(
    query_BHQD: torch.Size, key_BHKD: torch.Size, value_BHKD: torch.Size, *_: Any, **__: Any
) -> int:
    B, H, Q, D = query_BHQD
    return 2 * B * H * Q * key_BHKD[2] * (D + value_BHKD[3])
