"""Pictures encoded with a method at work inside the encoder.

n crops of a picture, L tokens of a crop, B crops of all pictures, P patches of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention.signals import patches_of_tokens
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.encoder.kinds import require_pictures
from tokensieve.hf.encoder.left import Wanted
from tokensieve.hf.encoder.reduction import ImageReduction, crop_counts, crop_keys
from tokensieve.hf.encoder.steps import EncoderSteps
from tokensieve.hf.families.fingerprint import encoder_info, patches_joined
from tokensieve.hf.families.layout import Packing, pack_anyres
from tokensieve.hf.families.table import FAMILIES, family_of
from tokensieve.hf.families.towers import has_cls
from tokensieve.hf.runtime.arguments import require_inputs
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo

TOWERS = ("clip_vision_model", "siglip_vision_model", "internvl_vision")


def require_inside(model: Any) -> None:
    """Raise `UnsupportedError` unless tokens can be dropped inside the encoder of `model`."""
    family, vision = family_of(model), getattr(model.config, "vision_config", None)
    tower = getattr(vision, "model_type", None)
    layer = getattr(model.config, "vision_feature_layer", -1)  # without a word of it, the last
    if not family.inside or tower not in TOWERS or not isinstance(layer, int):
        known = ", ".join(name for name, row in FAMILIES.items() if row.inside)
        raise UnsupportedError(
            f"Expected a model of {known} around a tower of {', '.join(TOWERS)} of which it reads "
            f"one layer, to drop tokens inside the encoder. Got '{model.config.model_type}' around "
            f"'{tower}', layer {layer}. Use a method that acts on 'features' or 'embeds'."
        )


def encode_inside(
    model: Any,
    method: Method,
    keep: float | int,
    inputs: Mapping[str, Any],
    keys: Sequence[int] | None = None,
    read: Mapping[int, int] | None = None,
) -> tuple[Encoded, list[ImageReduction]]:
    """Pictures encoded by an encoder that drops tokens on its way, and what is left of them.

    Without anything to drop the encoder is left alone. Raises `UnsupportedError` for models whose
    encoder does not bear it and inputs without pixels, and what `EncoderSteps` raises.
    """
    require_inside(model)
    require_inputs(inputs)
    if (inputs.get("mm_encoder_outputs") or {}).get("image") is not None:
        raise UnsupportedError(
            "Expected `pixel_values` for a method that acts inside the encoder. Got the encoder's "
            "output. Pass what the model's processor returns."
        )
    require_pictures(inputs, method.site)
    _require_patches(model, inputs)
    laid_out = encode(model, inputs, run=False, rows=rows_of_crops(model, inputs))
    laid_out = replace(laid_out, read=read or {})
    if not laid_out.packings:
        return laid_out, []
    info = encoder_info(model)
    if isinstance(layer := inputs.get("vision_feature_layer"), int):
        info = replace(info, layer=layer)
    wanted = _wanted(model, laid_out, info, keep, keys)
    if not any(wanted.shrinks):
        encoded = encode(model, inputs)
        return encoded, [ImageReduction(packing.valid_nL) for packing in encoded.packings]
    inside = EncoderSteps(model, method, info, wanted)
    with inside.hooked():
        encoded = encode(model, inputs)
    shapes = [[(p.crops, p.length) for p in e.packings] for e in (laid_out, encoded)]
    if shapes[0] != shapes[1] or not inside.put_back:
        raise UnsupportedError(
            f"Expected pictures of {shapes[0]} crops and tokens. Got {shapes[1]} from the encoder. "
            "Use a method that acts on 'features' or 'embeds'."
        )
    return encoded, _reductions(inside, encoded.packings)


def _require_patches(model: Any, inputs: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` where the LLM reads CLS too, or lacks a patch."""
    name = "vision_feature_select_strategy"
    strategy, cls = inputs.get(name, getattr(model.config, name, None)), has_cls(model)
    if strategy is not None and (strategy == "default") != cls:
        raise UnsupportedError(
            f"Expected a model that reads the patches of its vision encoder, all of them and not "
            f"CLS, for a method inside the encoder. Got {name}='{strategy}'. Set it to "
            f"'{'default' if cls else 'full'}', or use a method that acts on 'embeds'."
        )


def rows_of_crops(model: Any, inputs: Mapping[str, Any]) -> list[int] | None:
    """Rows of each entry of the encoder's output, told before it is run: of crops, or of pictures
    where the family packs their crops together. None without pixels."""
    pixels = inputs.get("pixel_values")
    if pixels is None or (info := encoder_info(model)).grid is None:
        return None
    pack = family_of(model).pack
    if pack is pack_anyres and inputs.get("image_sizes") is not None:
        return [len(packing.origin_N) for packing in pack(model, inputs, ())]
    crops = pixels.shape[:-3].numel()
    return [info.grid[0] * info.grid[1]] * crops


def _wanted(
    model: Any, encoded: Encoded, info: EncoderInfo, keep: float | int, keys: Sequence[int] | None
) -> Wanted:
    packings = encoded.packings
    tokens = info.grid[0] * info.grid[1] if info.grid is not None else 0
    merged = patches_joined(model.config) ** 2
    groups = patches_of_tokens(model, encoded.family, packings[:1], merged)[:tokens]
    valid_BL = torch.cat([packing.valid_nL for packing in packings])
    reaches = valid_BL.new_zeros(len(valid_BL), tokens * merged)
    reaches[:, groups.to(reaches.device)] = valid_BL[..., None].expand(-1, -1, merged)
    counts = [c * merged for packing in packings for c in crop_counts(keep, packing.valid_nL)]
    seeds = tuple(key for part in crop_keys(encoded, keys) for key in part)
    return Wanted(tuple(counts), reaches, seeds, groups.to(reaches.device))


def _reductions(inside: EncoderSteps, packings: Sequence[Packing]) -> list[ImageReduction]:
    left, wanted = inside.left, inside.wanted
    kept_BL = left.kept_BG(wanted.groups_GM, wanted.reaches_BP)
    assign_BL: Tensor | None = None
    if wanted.groups_GM.shape[1] == 1:
        merged = ~left.alive_BP & (left.owner_BP >= 0)
        if bool(merged.any()):
            assign_BL = left.owner_BP.masked_fill(~wanted.reaches_BP, -1)
    sizes = [packing.crops for packing in packings]
    kept = torch.split(kept_BL, sizes)
    assign = [None] * len(sizes) if assign_BL is None else torch.split(assign_BL, sizes)
    return [ImageReduction(k, None, a) for k, a in zip(kept, assign, strict=True)]
