"""A method applied to the pictures of a batch: what of each crop stays, and with what values.

n crops of a picture, L tokens of a crop, N rows of a picture, C width at the site, D LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.budget import Pool, count, split_evenly
from tokensieve.errors import UnsupportedError
from tokensieve.hf.encode import Encoded
from tokensieve.hf.families import project
from tokensieve.hf.pixels import patches_of
from tokensieve.hf.resize import resize_images
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens

_KEY_STRIDE = 65_537  # more crops than a prompt ever has: keys of two prompts never meet


@dataclass(frozen=True)
class ImageReduction:
    """What stays of one picture: kept positions per crop, and new rows for them if any."""

    kept_nL: Bool[Tensor, "n L"]
    rows_nLD: Float[Tensor, "n L D"] | None = None
    assign_nL: Int[Tensor, "n L"] | None = None


def reduce_images(
    model: Any,
    method: Method,
    encoded: Encoded,
    keep: float | int,
    pool: Pool,
    keys: Sequence[int] | None = None,
) -> list[ImageReduction]:
    """Apply `method` to every picture of `encoded`.

    Raises `UnsupportedError` for a site this model does not offer, `NonFiniteError` for NaN
    among the tokens, `BudgetError` for an impossible `keep`.
    """
    if method.site is Site.PIXELS:
        counts = [_crop_counts(keep, packing.valid_nL) for packing in encoded.packings]
        return [
            ImageReduction(kept, rows)
            for kept, rows in resize_images(model, method, encoded, counts)
        ]
    visions = _visions(model, method, encoded, keys)
    if pool is Pool.CROP:
        reductions = _per_crop(model, method, encoded, visions, keep)
    else:
        reductions = _pooled(model, method, encoded, visions, keep, pool)
    done = []
    for vision, reduction in zip(visions, reductions, strict=True):
        rows = reduction.tokens
        if rows is not None and method.site is Site.FEATURES:
            rows = project(model, encoded.family, rows)
        done.append(ImageReduction(reduction.kept & vision.valid_BL, rows, reduction.assign))
    return done


def _visions(
    model: Any, method: Method, encoded: Encoded, keys: Sequence[int] | None
) -> list[VisionTokens]:
    """Per picture, its crops as the method's site sees them."""
    packings = encoded.packings
    tokens = _method_tokens(model, method, encoded)
    patches: list[Tensor] | list[None] = [None] * len(packings)
    if "pixels" in method.needs:
        patches = patches_of(model, encoded.family, encoded.inputs, packings)
    seen: dict[int, int] = {}
    visions = []
    for i, (packing, prompt) in enumerate(zip(packings, encoded.prompt_of, strict=True)):
        first = seen.get(prompt, 0) + (0 if keys is None else keys[prompt] * _KEY_STRIDE)
        seen[prompt] = seen.get(prompt, 0) + packing.crops
        vision = VisionTokens(
            tokens[i],
            grid=packing.grid,
            valid=packing.valid_nL.to(tokens[i].device),
            patches=patches[i],
            keys=tuple(range(first, first + packing.crops)),
        )
        vision.require_finite(f"the site '{method.site}' of picture {i + 1}")
        visions.append(vision)
    return visions


def _method_tokens(model: Any, method: Method, encoded: Encoded) -> Sequence[Tensor]:
    """(n, L, C) per picture."""
    if not method.reads_picture:
        device = encoded.inputs["input_ids"].device
        return [torch.zeros(p.crops, p.length, 1, device=device) for p in encoded.packings]
    return site_tokens(model, method.site, encoded)


def site_tokens(model: Any, site: Site, encoded: Encoded) -> Sequence[Tensor]:
    """(n, L, C) tokens of each picture at "features" or "embeds".

    Raises `UnsupportedError` for a site this model does not offer.
    """
    if site is Site.FEATURES and encoded.features is not None:
        return encoded.features
    if site is Site.EMBEDS:
        return [
            scatter_rows(rows, packing.origin_N, packing.crops * packing.length).view(
                packing.crops, packing.length, -1
            )
            for rows, packing in zip(encoded.images, encoded.packings, strict=True)
        ]
    why = (
        "whose features are not one per token, or were not computed here"
        if site is Site.FEATURES
        else "where that site cannot be reached yet"
    )
    raise UnsupportedError(
        f"Expected a model that offers the site '{site}'. Got {type(model).__name__}, {why}."
        " Use a method that acts on 'embeds'."
    )


def scatter_rows(rows_ND: Tensor, origin_N: Tensor, total: int) -> Tensor:
    """Rows back at their tokens: (n * L, D), zero where a token has no row."""
    out = rows_ND.new_zeros(total, rows_ND.shape[-1])
    real = origin_N >= 0
    out[origin_N[real]] = rows_ND[real]
    return out


def _crop_counts(keep: float | int, valid_nL: Tensor) -> list[int]:
    """Tokens to keep of each crop of a picture; 0 of a crop that is all padding."""
    sizes = valid_nL.sum(-1).tolist()
    shares = iter(split_evenly(keep, [size for size in sizes if size]))
    return [next(shares) if size else 0 for size in sizes]


def _text(model: Any, encoded: Encoded, prompt: int) -> TextContext:
    ids = encoded.inputs["input_ids"][prompt]
    real = ids != encoded.placeholder
    if (mask := encoded.inputs.get("attention_mask")) is not None:
        real = real & mask[prompt].bool()
    return TextContext(model.get_input_embeddings()(ids[real]))


def _per_crop(
    model: Any, method: Method, encoded: Encoded, visions: list[VisionTokens], keep: float | int
) -> list[Reduction]:
    """All crops of one shape in one call of the method."""
    conditional = "text" in method.needs
    groups: dict[Any, list[int]] = {}
    for i, vision in enumerate(visions):
        shape = (vision.grid, vision.tokens.shape[1:])
        patch = None if vision.patches is None else vision.patches.shape[-1]
        prompt = encoded.prompt_of[i] if conditional else None
        groups.setdefault((shape, patch, prompt), []).append(i)
    done: dict[int, Reduction] = {}
    for (_, _, prompt), members in groups.items():
        parts = [visions[i] for i in members]
        counts = [c for part in parts for c in _crop_counts(keep, part.valid_BL)]
        whole = _batch(parts)
        counts_B = torch.tensor(counts, device=whole.tokens.device)
        text = _text(model, encoded, prompt) if conditional else None
        reduction = method.reduce(whole, counts_B, text)
        sizes = [len(part.tokens) for part in parts]
        for i, piece in zip(members, _unbatch(reduction, sizes), strict=True):
            done[i] = piece
    return [done[i] for i in range(len(visions))]


def _batch(parts: list[VisionTokens]) -> VisionTokens:
    if len(parts) == 1:
        return parts[0]
    given = [part.patches for part in parts if part.patches is not None]
    return VisionTokens(
        torch.cat([part.tokens for part in parts]),
        grid=parts[0].grid,
        valid=torch.cat([part.valid_BL for part in parts]),
        patches=torch.cat(given) if given else None,
        keys=tuple(key for part in parts for key in part.keys or ()),
    )


def _unbatch(whole: Reduction, sizes: list[int]) -> list[Reduction]:
    tokens = [None] * len(sizes) if whole.tokens is None else torch.split(whole.tokens, sizes)
    assign = [None] * len(sizes) if whole.assign is None else torch.split(whole.assign, sizes)
    parts = zip(torch.split(whole.kept, sizes), tokens, assign, strict=True)
    return [Reduction(*part) for part in parts]


def _pooled(
    model: Any, method: Method, encoded: Encoded, visions: list[VisionTokens],
    keep: float | int, pool: Pool,
) -> list[Reduction]:  # fmt: skip
    """Crops of a picture, or of all pictures of a prompt, compete for one budget."""
    pools: dict[int, list[int]] = {}
    for i, prompt in enumerate(encoded.prompt_of):
        pools.setdefault(i if pool is Pool.IMAGE else prompt, []).append(i)
    done: dict[int, Reduction] = {}
    for members in pools.values():
        groups = [visions[i] for i in members]
        budget = count(keep, int(sum(group.valid_BL.sum() for group in groups)))
        prompt = encoded.prompt_of[members[0]]
        text = _text(model, encoded, prompt) if "text" in method.needs else None
        done.update(zip(members, method.reduce_pool(groups, budget, text), strict=True))
    return [done[i] for i in range(len(visions))]
