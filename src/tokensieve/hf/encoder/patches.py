"""The site "patches": what is dropped is never encoded.

A method sees the pixels under each token, their grid and a budget; whole tokens go, with all the
patches that make them. The encoder is run on those that stay, at their own places.

n crops of a picture, L tokens of a crop, R tokens of all pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.encoder.encode import Encoded, encode
from tokensieve.hf.encoder.fewer import FewerPatches
from tokensieve.hf.encoder.places import places_of_tokens, read_layers
from tokensieve.hf.families.towers import encoder_layers, has_cls, patch_rows


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
    read = read_layers(model, laid_out.inputs) | {len(encoder_layers(model)) - 1}
    fewer = FewerPatches(model, rows, tokens, read)
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
    places = places_of_tokens(model, laid_out)
    own_R, of_token = (part.to(kept_R.device) for part in (places.in_tower_R, places.of_token_Rm))
    tokens_R = torch.zeros_like(kept_R).index_fill(0, own_R[kept_R], True)
    patches_N = kept_R.new_zeros(sum(places.sizes))
    patches_N = patches_N.index_fill(0, of_token[kept_R].flatten(), True)
    known = patch_rows(model)
    if known is not None and known.packed:
        return patches_N, tokens_R
    padded = places.batched(patches_N)
    cls = kept_R.new_ones(len(padded), int(has_cls(model)))
    return torch.cat([cls, padded], 1), tokens_R
