"""Where the patches of each token stand in a tower, told before it is run.

n crops of a picture, L tokens of a crop, R tokens of all pictures, m patches of a token, N patches
of all crops, P of the largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention.signals import cells_of, patches_of_tokens
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.encoder.kinds import require_pictures
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.layout import pack_anyres
from tokensieve.hf.families.table import family_of
from tokensieve.hf.families.towers import PATCH_ROWS, encoder_layers, patch_rows
from tokensieve.hf.runtime.arguments import require_inputs
from tokensieve.types import Site


@dataclass(frozen=True)
class Places:
    """Patches and tokens of all crops, one after another.

    of_token: patches of each token of the LLM, as the tower numbers them. in_tower: the number of
    each token among those the tower makes. sizes: patches of each crop. width: P, of a tower that
    pads crops to a batch itself what it pads them to.
    """

    of_token_Rm: Int[Tensor, "R m"]
    in_tower_R: Int[Tensor, "R"]
    sizes: tuple[int, ...]
    width: int

    def batched(self, rows_N: Bool[Tensor, "N"]) -> Bool[Tensor, "n P"]:
        """A row of a batch for each crop; padding is False."""
        parts = torch.split(rows_N, [*self.sizes])
        pad = torch.nn.functional.pad
        return torch.stack([pad(part, (0, self.width - len(part))) for part in parts])


def require_rows(model: Any) -> None:
    """Raise `UnsupportedError` unless the encoder of `model` can be run on fewer patches."""
    vision = getattr(model.config, "vision_config", None)
    if patch_rows(model) is None or family_of(model).patches is not None:
        raise UnsupportedError(
            "Expected a vision encoder that can be run on fewer patches "
            f"({', '.join(PATCH_ROWS)}). Got '{getattr(vision, 'model_type', None)}' of "
            f"'{model.config.model_type}'. Use a method that acts on 'features' or 'embeds'."
        )


def lay_out(model: Any, inputs: Mapping[str, Any], site: Site = Site.PATCHES) -> Encoded:
    """Prompts with their pictures laid out, nothing encoded yet.

    Raises `UnsupportedError` for models whose encoder bears no fewer patches and for inputs without
    pixels, and what `encode` raises.
    """
    require_rows(model)
    require_inputs(inputs)
    require_pictures(inputs, site)
    if (inputs.get("mm_encoder_outputs") or {}).get("image") is not None:
        where = "before" if site is Site.PATCHES else "inside"
        raise UnsupportedError(
            f"Expected `pixel_values` for a method that acts {where} the encoder. Got the "
            "encoder's output. Pass what the model's processor returns."
        )
    return encode(model, inputs, run=False, rows=_rows(model, inputs))


def places_of_tokens(model: Any, laid_out: Encoded) -> Places:
    """The patches of each token. Raises `UnsupportedError` where that cannot be told."""
    inputs, family = laid_out.inputs, laid_out.family
    device = inputs["input_ids"].device
    crops = [packing.crops for packing in laid_out.packings]
    R = sum(packing.crops * packing.length for packing in laid_out.packings)
    native = _native(model, inputs)
    if native is None:
        sizes = [_patches_of_crop(model, inputs)] * sum(crops)
    else:
        sizes = [s // n for s, n in zip(native, crops, strict=True) for _ in range(n)]
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
    width = max(sizes)
    if "spatial_shapes" in inputs:  # padded to the same number of patches
        width = inputs["pixel_values"].shape[1]
    return Places(of_token, own_R, tuple(sizes), int(width))


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
        if encoder_info(model).grid is not None:
            return [len(packing.origin_N) for packing in pack_anyres(model, inputs, ())]
        return None
    if pixels is None or family.split_runs:
        return None
    sizes = [1] * len(pixels.flatten(0, -4)) if sizes is None else sizes
    places = int((inputs["input_ids"] == model.config.image_token_id).sum())
    rows = [size * places // sum(sizes) for size in sizes]
    return rows if sum(rows) == places else None


def read_layers(model: Any, inputs: Mapping[str, Any]) -> set[int]:
    """The layers of the encoder that the VLM reads, counted from 0; the last if it names none."""
    depth, read = len(encoder_layers(model)), set[int]()
    for name in ("vision_feature_layer", "vision_feature_layers"):
        told = inputs.get(name, getattr(model.config, name, None))
        for layer in [told] if isinstance(told, int) else told or ():
            read.add(layer - 1 if layer >= 0 else depth + layer)
    return read or {depth - 1}
