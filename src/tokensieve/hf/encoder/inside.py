"""Pictures encoded with a method at work inside the encoder.

n crops of a picture, L tokens of a crop; R tokens, B crops and N patches of all pictures, P patches
of the largest crop, G tokens of it, M patches of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tokensieve.errors import UnsupportedError
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.encoder.left import Wanted
from tokensieve.hf.encoder.places import lay_out, places_of_tokens, read_layers
from tokensieve.hf.encoder.reduction import ImageReduction, crop_counts, crop_keys
from tokensieve.hf.encoder.steps import EncoderSteps
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.families.towers import has_cls
from tokensieve.methods.base import Method


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
    _require_patches(model, inputs)
    laid_out = lay_out(model, inputs, method.site)
    laid_out = replace(laid_out, read=read or {})
    if not laid_out.packings:
        return laid_out, []
    info = encoder_info(model)
    if isinstance(layer := inputs.get("vision_feature_layer"), int):
        info = replace(info, layer=layer)
    wanted = _wanted(model, laid_out, keep, keys)
    if not any(wanted.shrinks):
        encoded = encode(model, inputs)
        return encoded, [ImageReduction(packing.valid_nL) for packing in encoded.packings]
    inside = EncoderSteps(model, method, info, wanted, read_layers(model, inputs))
    with inside.hooked():
        encoded = encode(model, inputs, features=False)
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


def _wanted(model: Any, laid_out: Encoded, keep: float | int, keys: Sequence[int] | None) -> Wanted:
    packings = laid_out.packings
    places = places_of_tokens(model, laid_out)
    merged, device = places.of_token_Rm.shape[1], places.of_token_Rm.device
    sizes = torch.tensor(places.sizes, device=device)
    there_BP = torch.arange(places.width, device=device) < sizes[:, None]
    lengths = [packing.length for packing in packings for _ in range(packing.crops)]
    groups_BGM = sizes.new_full((len(lengths), max(lengths), merged), -1)
    starts = (sizes.cumsum(0) - sizes).tolist()
    for b, part in enumerate(torch.split(places.of_token_Rm, lengths)):
        groups_BGM[b, : len(part)] = part - starts[b]
    valid_R = torch.cat([packing.valid_nL.flatten() for packing in packings]).to(device)
    reaches_N = torch.zeros(sum(places.sizes), dtype=torch.bool, device=device)
    reaches_N[places.of_token_Rm[valid_R].flatten()] = True
    counts = [c * merged for packing in packings for c in crop_counts(keep, packing.valid_nL)]
    seeds = tuple(key for part in crop_keys(laid_out, keys) for key in part)
    return Wanted(tuple(counts), there_BP, places.batched(reaches_N), seeds, groups_BGM)


def _reductions(inside: EncoderSteps, packings: Sequence[Packing]) -> list[ImageReduction]:
    left, wanted = inside.left, inside.wanted
    kept_BG = left.kept_BG(wanted)
    merged_BP = ~left.alive_BP & (left.owner_BP >= 0)
    taken_BG = None
    if wanted.groups_BGM.shape[-1] == 1 and bool(merged_BP.any()):
        taken_BG = left.taken_BG(wanted)
    out, b = [], 0
    for packing in packings:
        crops, own = slice(b, b + packing.crops), slice(packing.length)
        assign = None if taken_BG is None else taken_BG[crops, own]
        out.append(ImageReduction(kept_BG[crops, own], None, assign))
        b += packing.crops
    return out
