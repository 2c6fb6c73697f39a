"""Pixels under each visual token, and pictures encoded anew at a smaller size.

n crops of a picture, L tokens of a crop, P pixel values under a token, R rows of all pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, unfold

from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention.signals import cells_of
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.families.table import Family, project
from tokensieve.hf.runtime.devices import at_hand

INTERPOLATING = ("clip_vision_model", "siglip_vision_model")  # they take interpolate_pos_encoding


def patches_of(
    model: Any, family: Family, inputs: Mapping[str, Any], packings: Sequence[Packing]
) -> list[Tensor]:
    """(n, L, P) pixel values under each token, per picture.

    Raises `UnsupportedError` where pixels are not to be had or do not line up with tokens.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None:
        raise UnsupportedError(
            "Expected `pixel_values` for a method that looks at pixels. Got none (precomputed "
            "encoder outputs?). Pass the processor's full output, or use another method."
        )
    sizes = [p.crops * p.length for p in packings]
    if pixels.ndim == 2:  # flattened patches, neighbours of one LLM token together (Qwen-VL)
        rows = pixels.reshape(sum(sizes), len(pixels) // sum(sizes), 3, -1)
        rows = rows.transpose(1, 2).flatten(1)  # channel after channel
        parts = rows.split(sizes)
        return [part.view(p.crops, p.length, -1) for part, p in zip(parts, packings, strict=True)]
    if pixels.ndim == 4 and "image_grid_thw" in inputs:  # patches row by row (MoonViT)
        of_token = cells_of(packings, len(pixels) // sum(sizes)).to(pixels.device)
        parts = pixels[of_token].transpose(1, 2).flatten(1).split(sizes)
        return [part.view(p.crops, p.length, -1) for part, p in zip(parts, packings, strict=True)]
    if pixels.ndim == 3:  # patches row by row, channels last, padded to a batch (SigLIP2)
        channels = model.config.vision_config.num_channels
        sizes = torch.as_tensor(inputs["spatial_shapes"]).prod(-1).tolist()
        return [
            _of_cells(rows[:size].unflatten(-1, (-1, channels)), packing)
            for rows, size, packing in zip(pixels, sizes, packings, strict=True)
        ]
    return [
        _unfold(crops, packing)
        for crops, packing in zip(crop_pixels(inputs, packings), packings, strict=True)
    ]


def _of_cells(patches_Svc: Tensor, packing: Packing) -> Tensor:
    """(1, L, P) of one picture of S patches of v places and c channels, row by row; those of a
    token are a square of neighbours."""
    of_token = cells_of([packing], len(patches_Svc) // packing.length).to(patches_Svc.device)
    return patches_Svc[of_token].permute(0, 3, 1, 2).flatten(1)[None]


def _unfold(crops_nchw: Tensor, packing: Packing) -> Tensor:
    if packing.grid is None or packing.crops != len(crops_nchw):
        raise UnsupportedError(
            "Expected visual tokens on a grid over the picture. Got tokens that are not one per "
            "patch. Use a method that does not look at pixels."
        )
    h, w = packing.grid
    size = (crops_nchw.shape[-2] // h, crops_nchw.shape[-1] // w)
    trimmed = crops_nchw[..., : h * size[0], : w * size[1]]
    return unfold(trimmed.float(), size, stride=size).transpose(1, 2)


def crop_pixels(inputs: Mapping[str, Any], packings: Sequence[Packing]) -> list[Tensor]:
    """(n, channels, height, width) of each picture."""
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:
        flat = pixels.flatten(0, 1)
        if pixels.shape[0] == len(packings):
            return [pixels[i, : p.crops] for i, p in enumerate(packings)]
        real = flat[(flat != 0).flatten(1).any(1)]  # Idefics3 pads with empty pictures
        return list(real.split([p.crops for p in packings]))
    if (sizes := inputs.get("image_sizes")) is not None and len(sizes) == len(pixels):
        whole = [pixels[i, None, :, : int(h), : int(w)] for i, (h, w) in enumerate(sizes)]
        if all(p.crops == 1 for p in packings):
            return whole
    return list(pixels.split([p.crops for p in packings]))


def shrink(
    model: Any, family: Family, inputs: Mapping[str, Any], packings: Sequence[Packing],
    grids: Sequence[tuple[int, int]],
) -> list[Tensor]:  # fmt: skip
    """Each picture resized so that a crop gives the tokens of `grids`, and encoded: (n, k, D).

    Raises `UnsupportedError` where the encoder takes no other size.
    """
    if inputs.get("pixel_values") is None:
        raise UnsupportedError("Expected `pixel_values` to resize. Got none. Pass the pixels.")
    if family.resizable and family.merged:
        return _shrink_patches(model, inputs, grids)
    if not family.resizable or model.config.vision_config.model_type not in INTERPOLATING:
        raise UnsupportedError(
            "Expected an encoder that takes other picture sizes, to make the picture smaller. Got "
            f"{type(model).__name__}'s. Use a method that drops tokens."
        )
    crops = crop_pixels(inputs, packings)
    return [
        _encode_crops(model, family, pixels, packing, grid)
        for pixels, packing, grid in zip(crops, packings, grids, strict=True)
    ]


def _encode_crops(
    model: Any, family: Family, pixels: Tensor, packing: Packing, grid: tuple[int, int]
) -> Tensor:
    """Crops (n, channels, height, width) resized to `grid` tokens and encoded."""
    full, config = packing.grid or grid, model.config
    size = [grid[i] * (pixels.shape[2 + i] // full[i]) for i in range(2)]
    small = interpolate(pixels.float(), size, mode="bilinear", antialias=True).to(pixels.dtype)
    tower = model.base_model.vision_tower
    # where positions are interpolated, their table is read and not run
    tables = [module for module in tower.modules() if isinstance(module, nn.Embedding)]
    with at_hand(tables):
        out = tower(
            small, output_hidden_states=True, interpolate_pos_encoding=True, return_dict=True
        )
    layers = config.vision_feature_layer
    chosen = [layers] if isinstance(layers, int) else list(layers)
    read = [out.hidden_states[layer] for layer in chosen]
    features = torch.cat([part.to(read[-1].device) for part in read], dim=-1)
    strategy = getattr(config, "vision_feature_select_strategy", "full")
    if strategy == "default":
        features = features[:, 1:]
    return project(model, family, features)


def _shrink_patches(
    model: Any, inputs: Mapping[str, Any], grids: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Qwen-VL: flattened patches back to frames, resized, flattened again and encoded."""
    merge = model.config.vision_config.spatial_merge_size
    pixels, thw = inputs["pixel_values"], inputs["image_grid_thw"]
    small, small_thw = [], []
    for part, (t, h, w), (gh, gw) in zip(
        pixels.split(thw.prod(-1).tolist()), thw.tolist(), grids, strict=True
    ):
        side = model.config.vision_config.patch_size
        inner = part.shape[-1] // side**2  # channels x frames of one patch
        frames = part.view(t, h // merge, w // merge, merge, merge, inner, side, side)
        frames = frames.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(t, inner, h * side, w * side)
        size = [gh * merge * side, gw * merge * side]
        frames = interpolate(frames.float(), size, mode="bilinear", antialias=True)
        frames = frames.view(t, inner, gh, merge, side, gw, merge, side)
        flat = frames.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, part.shape[-1])
        small.append(flat.to(pixels.dtype))
        small_thw.append([t, gh * merge, gw * merge])
    with at_hand([model.base_model]):
        out = model.base_model.get_image_features(
            pixel_values=torch.cat(small),
            image_grid_thw=thw.new_tensor(small_thw),
            return_dict=True,
        )
    return [
        rows.view(t, gh * gw, -1)
        for rows, (t, _, _), (gh, gw) in zip(out.pooler_output, small_thw, grids, strict=True)
    ]
