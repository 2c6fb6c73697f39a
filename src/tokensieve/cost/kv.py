"""Bytes a KV cache holds, by config and as measured."""

from __future__ import annotations

from typing import Any

import torch

from tokensieve.cost.shapes import TransformerShape


def kv_bytes(shape: TransformerShape, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of `tokens` cached tokens of one sequence, over all layers."""
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.itemsize
    return per_token * tokens


def cache_bytes(cache: Any) -> int:
    """Bytes a Transformers `DynamicCache` really holds: the sum over its layers' tensors."""
    return sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in (layer.keys, layer.values)
        if part is not None
    )
