"""The CLIP encoder of both models from scratch, and pictures as it reads them and is taught them.

B batch, S picture side in pixels, L patches, C encoder width, P pixel values of a patch at half
resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder: channels, layers, heads, and pixels of picture and patch."""

    width: int
    hidden: int
    layers: int
    heads: int
    side: int
    patch: int


def sincos_positions(width: int, grid: int) -> Tensor:
    """2-D sin-cos positions of the patch grid, (L, C), values in -1..1."""
    freqs = 1.0 / (100.0 ** (torch.arange(width // 4) / (width // 4)))
    axis = torch.arange(grid)[:, None] * freqs[None]
    waves = torch.cat([axis.sin(), axis.cos()], dim=1)
    rows = waves[:, None, :].expand(grid, grid, -1)
    cols = waves[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, cols], dim=-1).reshape(grid * grid, width)


def clip(shape: Shape) -> CLIPVisionModel:
    """The untrained encoder, the positions of its patches set to half the sin-cos pattern."""
    config = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.side,
        patch_size=shape.patch,
        projection_dim=shape.width,
        hidden_act="gelu",
    )
    model = CLIPVisionModel(config)
    with torch.no_grad():
        positions(model)[1:] = 0.5 * sincos_positions(shape.width, shape.side // shape.patch)
    return model


def positions(model: CLIPVisionModel) -> Tensor:
    """The learned positions, (1 + L, C); the first is that of CLS."""
    named = dict(model.named_parameters())
    (found,) = (named[name] for name in named if name.endswith("position_embedding.weight"))
    return found


def normalise(images_BSS3: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) to (B, 3, S, S) in -1..1, as the processor does."""
    return images_BSS3.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def pixels_of(pixels_B3SS: Tensor, patch: int) -> Tensor:
    """Pixels by patch at half resolution, (B, L, P)."""
    half, small = patch // 2, F.avg_pool2d(pixels_B3SS, 2)
    rows, columns = small.shape[2] // half, small.shape[3] // half
    grid = small.view(len(small), 3, rows, half, columns, half)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
