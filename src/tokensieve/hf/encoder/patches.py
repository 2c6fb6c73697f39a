"""The site "patches": what is dropped is never encoded.

A method sees the pixels under each token, their grid and a budget; whole tokens go, with all the
patches that make them. The encoder is run on those that stay, at their own places.

n crops of a picture, L tokens of a crop, R tokens of all pictures, m patches of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention.signals import cells_of, patches_of_tokens
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.encoder.fewer import FewerPatches
from tokensieve.hf.encoder.inside import rows_of_crops
from tokensieve.hf.encoder.kinds import require_pictures
from tokensieve.hf.families.layout import pack_anyres
from tokensieve.hf.families.table import family_of
from tokensieve.hf.families.towers import PATCH_ROWS, encoder_layers, has_cls, patch_rows
from tokensieve.hf.runtime.arguments import require_inputs
from tokensieve.types import Site


def require_patches(model: Any) -> None:
    """Raise `UnsupportedError` unless the encoder of `model` can be run on fewer patches."""
    vision = getattr(model.config, "vision_config", None)
    if patch_rows(model) is None or family_of(model).patches is not None:
        raise UnsupportedError(
            "Expected a vision encoder that can be run on fewer patches "
            f"({', '.join(PATCH_ROWS)}). Got '{getattr(vision, 'model_type', None)}' of "
            f"'{model.config.model_type}'. Use a method that acts on 'features' or 'embeds'."
        )


def lay_out(model: Any, inputs: Mapping[str, Any]) -> Encoded:
    """Prompts with their pictures laid out, nothing encoded yet.

    Raises `UnsupportedError` for models whose encoder bears no fewer patches and for inputs without
    pixels, and what `encode` raises.
    """
    require_patches(model)
    require_inputs(inputs)
    require_pictures(inputs, Site.PATCHES)
    if (inputs.get("mm_encoder_outputs") or {}).get("image") is not None:
        raise UnsupportedError(
            "Expected `pixel_values` for a method that acts before the encoder. Got the encoder's "
            "output. Pass what the model's processor returns."
        )
    return encode(model, inputs, run=False, rows=_rows(model, inputs))


def encode_fewer(model: Any, laid_out: Encoded, kept: Sequence[Tensor]) -> Encoded:
    """The pictures encoded without the patches of tokens that are not kept; rows of those are zero.

    kept: (n, L) per picture. Padding that never reaches the LLM (of LLaVA-NeXT's crops) goes where
    its crop loses a token, and stays where it loses none: that is the crop as it was.

    Raises `UnsupportedError` where patches and tokens cannot be told to belong together, and what
    `FewerPatches` raises.
    """
    parts = []
    for part_nL, packing in zip(kept, laid_out.packings, strict=True):
        whole_n = (part_nL == packing.valid_nL.to(part_nL.device)).all(-1, keepdim=True)
        parts.append((part_nL | whole_n).flatten())
    kept_R = torch.cat(parts)
    if bool(kept_R.all()):
        return encode(model, laid_out.inputs, features=False)
    rows, tokens = _tower_rows(model, laid_out, kept_R)
    fewer = FewerPatches(model, rows, tokens, _read(model, laid_out.inputs))
    with fewer.hooked():
        encoded = encode(model, laid_out.inputs, features=False)
    shapes = [[(p.crops, p.length) for p in one.packings] for one in (laid_out, encoded)]
    if shapes[0] != shapes[1] or not fewer.ran:
        raise UnsupportedError(
            f"Expected pictures of {shapes[0]} crops and tokens. Got {shapes[1]} from the encoder. "
            "Use a method that acts on 'features' or 'embeds'."
        )
    return encoded


def _tower_rows(model: Any, laid_out: Encoded, kept_R: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of the tower stay, (N,) or (B, S), and which tokens in its order, (R,)."""
    inputs, family, device = laid_out.inputs, laid_out.family, kept_R.device
    R, crops = len(kept_R), sum(packing.crops for packing in laid_out.packings)
    native = _native(model, inputs)
    sizes = native or [_patches_of_crop(model, inputs)] * crops
    merged, rest = divmod(sum(sizes), R)
    if rest or not merged:
        raise UnsupportedError(
            f"Expected whole patches for each of {R} visual tokens. Got {sum(sizes)} patches for "
            f"{type(model).__name__}'s encoder. Use a method that acts on 'features' or 'embeds'."
        )
    own_R = torch.arange(R, device=device)
    if inputs["pixel_values"].ndim == 2:  # flattened: patches of a token follow each other
        of_token = torch.arange(R * merged).view(R, merged)
    elif native and all(packing.grid for packing in laid_out.packings):
        of_token = cells_of(laid_out.packings, merged)
    else:
        of_token = patches_of_tokens(model, family, laid_out.packings, merged)
    of_token = of_token.to(device)
    if family.order is not None:
        own_R = family.order(model, inputs, own_R[:, None])[:, 0]
        of_token = of_token[own_R]
    tokens_R = torch.zeros_like(kept_R).index_fill(0, own_R[kept_R], True)
    patches_N = kept_R.new_zeros(sum(sizes)).index_fill(0, of_token[kept_R].flatten(), True)
    known = patch_rows(model)
    if known is not None and known.packed:
        return patches_N, tokens_R
    parts, width = torch.split(patches_N, sizes), max(sizes)
    if "spatial_shapes" in inputs:  # padded to the same number of patches
        width = inputs["pixel_values"].shape[1]
    padded = [torch.nn.functional.pad(part, (0, width - len(part))) for part in parts]
    cls = kept_R.new_ones(len(padded), int(has_cls(model)))
    return torch.cat([cls, torch.stack(padded)], 1), tokens_R


def _native(model: Any, inputs: Mapping[str, Any]) -> list[int] | None:
    """Patches of each picture, of towers that take pictures as they are; None: of the others."""
    for name in ("image_grid_thw", "spatial_shapes"):
        if (shapes := inputs.get(name)) is not None:
            return [int(size) for size in torch.as_tensor(shapes).prod(-1)]
    rows, sizes = patch_rows(model), inputs.get("image_sizes")
    if rows is None or not rows.packed or sizes is None:
        return None
    side = patch_side(model)
    return [(int(h) // side) * (int(w) // side) for h, w in sizes]


def _patches_of_crop(model: Any, inputs: Mapping[str, Any]) -> int:
    h, w = inputs["pixel_values"].shape[-2:]
    side = patch_side(model)
    return int((h // side) * (w // side))


def patch_side(model: Any) -> int:
    """Pixels along a patch."""
    size = model.config.vision_config.patch_size
    return int(size if isinstance(size, int) else size[0])


def _rows(model: Any, inputs: Mapping[str, Any]) -> list[int] | None:
    """Rows of each entry of the encoder's output, told before it is run; None: as the runs of
    placeholders say."""
    sizes, family = _native(model, inputs), family_of(model)
    pixels = inputs.get("pixel_values")
    if sizes is None and family.pack is pack_anyres and inputs.get("image_sizes") is not None:
        return rows_of_crops(model, inputs)
    if pixels is None or family.split_runs:
        return None
    sizes = [1] * len(pixels.flatten(0, -4)) if sizes is None else sizes
    places = int((inputs["input_ids"] == model.config.image_token_id).sum())
    rows = [size * places // sum(sizes) for size in sizes]
    return rows if sum(rows) == places else None


def _read(model: Any, inputs: Mapping[str, Any]) -> set[int]:
    """The layers of the encoder that the VLM reads, counted from 0; the last always."""
    depth, read = len(encoder_layers(model)), set[int]()
    for name in ("vision_feature_layer", "vision_feature_layers"):
        told = inputs.get(name, getattr(model.config, name, None))
        for layer in [told] if isinstance(told, int) else told or ():
            read.add(layer - 1 if layer >= 0 else depth + layer)
    return {depth - 1, *read}
