"""A method applied to the pictures of a batch: what of each crop stays, and with what values.

n crops of a picture, L tokens of a crop, N rows of a picture, C width at the site, D LLM width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.budget import Pool, Spread, count
from tokensieve.errors import UnsupportedError
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.encoder.kinds import require_pictures, seen_as
from tokensieve.hf.encoder.pixels import patches_of
from tokensieve.hf.encoder.reduction import ImageReduction, crop_counts, crop_keys
from tokensieve.hf.encoder.resize import resize_images
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.table import project
from tokensieve.hf.prompt.frames import reduce_windows
from tokensieve.hf.prompt.text import Asked
from tokensieve.hf.runtime.devices import moved
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


def reduce_images(
    model: Any,
    method: Method,
    encoded: Encoded,
    keep: float | int,
    spread: Spread,
    keys: Sequence[int] | None = None,
) -> list[ImageReduction]:
    """Apply `method` to every picture of `encoded`.

    Raises `UnsupportedError` for a site this model does not offer, `NonFiniteError` for NaN
    among the tokens, `BudgetError` for an impossible `keep`.
    """
    if method.site in (Site.PIXELS, Site.ENCODER):
        require_pictures(encoded.inputs, method.site)
    if method.site is Site.PIXELS:
        counts = [crop_counts(keep, packing.valid_nL) for packing in encoded.packings]
        return [
            ImageReduction(kept, rows)
            for kept, rows in resize_images(model, method, encoded, counts)
        ]
    if method.site is Site.ENCODER:  # what is dropped inside the encoder is gone by now
        return [ImageReduction(packing.valid_nL) for packing in encoded.packings]
    visions = visions_of(model, method, encoded, keys)

    def text(prompt: int) -> TextContext:
        return asked.context(model.get_input_embeddings(), prompt)

    asked = Asked.of(model, encoded.inputs)
    reductions = reduce_visions(method, visions, encoded.prompt_of, keep, spread, text)
    done = []
    for vision, reduction in zip(visions, reductions, strict=True):
        rows = reduction.tokens
        if rows is not None and method.site is Site.FEATURES:
            rows = project(model, encoded.family, rows)
        kept = reduction.kept & vision.valid_BL
        done.append(ImageReduction(kept, rows, reduction.assign, method.protects(vision)))
    return done


def reduce_visions(
    method: Method,
    visions: list[VisionTokens],
    prompt_of: Sequence[int],
    keep: float | int,
    spread: Spread,
    text: Callable[[int], TextContext],
    whole: Sequence[Tensor] | None = None,
) -> list[Reduction]:
    """Apply `method` to the tokens of each picture, however they were come by.

    prompt_of: the prompt of each picture; text: that of a prompt, asked for where it is needed.
    whole: (n, L) per picture, the tokens that `keep` is a share of; None: those that are valid
        now. No more than are valid are kept.
    """
    whole = [vision.valid_BL for vision in visions] if whole is None else whole
    asked = _beside(visions, text) if "text" in method.needs else None
    windows = [spread.window(len(v.tokens)) if v.frames else None for v in visions]
    done: dict[int, Reduction] = {}
    for i, window in enumerate(windows):
        if window is not None and window > 1:
            context = None if asked is None else asked(prompt_of[i])
            done[i] = reduce_windows(method, visions[i], keep, window, context, whole[i])

    def rest(*, alone: bool) -> None:
        members = [
            i for i, window in enumerate(windows)
            if i not in done and alone == (window == 1 or spread.pool is Pool.CROP)
        ]  # fmt: skip
        if not members:
            return
        chosen, prompts = [visions[i] for i in members], [prompt_of[i] for i in members]
        wholes = [whole[i] for i in members]
        if alone:
            made = _per_crop(method, chosen, prompts, keep, asked, wholes)
        else:
            made = _pooled(method, chosen, prompts, keep, spread.pool, asked, wholes)
        done.update(zip(members, made, strict=True))

    rest(alone=True)
    rest(alone=False)
    return [done[i] for i in range(len(visions))]


def _beside(
    visions: Sequence[VisionTokens], text: Callable[[int], TextContext]
) -> Callable[[int], TextContext]:
    """`text` on the device of the tokens."""
    return lambda prompt: moved(text(prompt), visions[0].tokens.device)


def visions_of(
    model: Any, method: Method, encoded: Encoded, keys: Sequence[int] | None
) -> list[VisionTokens]:
    """Per picture, its crops as the method's site sees them."""
    packings = encoded.packings
    tokens = _method_tokens(model, method, encoded)
    first_keys = crop_keys(encoded, keys)
    patches: list[Tensor] | list[None] = [None] * len(packings)
    if "pixels" in method.needs:
        patches = _patches(model, encoded)
    told = {
        name: encoded.signals[signal]
        for name, signal in method.signals(encoder_info(model)).items()
        if signal in encoded.signals
    }
    visions = []
    for i, packing in enumerate(packings):
        vision = VisionTokens(
            tokens[i],
            grid=packing.grid,
            valid=packing.valid_nL,
            patches=patches[i],
            keys=first_keys[i],
            tiles=packing.tiles,
            frames=encoded.kinds[i : i + 1] == ("video",),
            signals={name: found[i].to(tokens[i].device) for name, found in told.items()},
        )
        vision = moved(vision, vision.tokens.device)
        vision.require_finite(f"the site '{method.site}' of picture {i + 1}")
        visions.append(vision)
    return visions


def _patches(model: Any, encoded: Encoded) -> list[Tensor]:
    """(n, L, P) pixel values under each token, per picture."""
    found: dict[int, Tensor] = {}
    for kind in ("image", "video"):
        of_kind = [i for i, own in enumerate(encoded.kinds) if own == kind]
        if of_kind:
            packings = [encoded.packings[i] for i in of_kind]
            view = seen_as(encoded.inputs, kind)
            found |= dict(
                zip(of_kind, patches_of(model, encoded.family, view, packings), strict=True)
            )
    return [found[i] for i in range(len(encoded.packings))]


def _method_tokens(model: Any, method: Method, encoded: Encoded) -> Sequence[Tensor]:
    """(n, L, C) per picture."""
    if not method.reads_picture or method.site is Site.PATCHES:
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
    origin_N = origin_N.to(rows_ND.device)
    real = origin_N >= 0
    out[origin_N[real]] = rows_ND[real]
    return out


def _per_crop(
    method: Method, visions: list[VisionTokens], prompt_of: Sequence[int], keep: float | int,
    text: Callable[[int], TextContext] | None, whole: Sequence[Tensor],
) -> list[Reduction]:  # fmt: skip
    """All crops of one shape in one call of the method."""
    groups: dict[Any, list[int]] = {}
    for i, vision in enumerate(visions):
        shape = (vision.grid, vision.tokens.shape[1:])
        patch = None if vision.patches is None else vision.patches.shape[-1]
        prompt = None if text is None else prompt_of[i]
        told = tuple((name, s.shape[2:]) for name, s in vision.signals.items())
        groups.setdefault((shape, patch, told, prompt), []).append(i)
    done: dict[int, Reduction] = {}
    for (*_, prompt), members in groups.items():
        parts = [visions[i] for i in members]
        counts = [c for i in members for c in crop_counts(keep, whole[i], method.share(visions[i]))]
        batch = _batch(parts)
        counts_B = torch.tensor(counts, device=batch.tokens.device).minimum(batch.valid_BL.sum(-1))
        reduction = method.reduce(batch, counts_B, None if text is None else text(prompt))
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
        signals={
            name: torch.cat([part.signals[name] for part in parts]) for name in parts[0].signals
        },
    )


def _unbatch(whole: Reduction, sizes: list[int]) -> list[Reduction]:
    tokens = [None] * len(sizes) if whole.tokens is None else torch.split(whole.tokens, sizes)
    assign = [None] * len(sizes) if whole.assign is None else torch.split(whole.assign, sizes)
    parts = zip(torch.split(whole.kept, sizes), tokens, assign, strict=True)
    return [Reduction(*part) for part in parts]


def _pooled(
    method: Method, visions: list[VisionTokens], prompt_of: Sequence[int], keep: float | int,
    pool: Pool, text: Callable[[int], TextContext] | None, whole: Sequence[Tensor],
) -> list[Reduction]:  # fmt: skip
    """Crops of a picture, or of all pictures of a prompt, compete for one budget."""
    pools: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompt_of):
        pools.setdefault(i if pool is Pool.IMAGE else prompt, []).append(i)
    done: dict[int, Reduction] = {}
    for members in pools.values():
        groups = [visions[i] for i in members]
        budget = count(keep, int(sum(whole[i].sum() for i in members)))
        left = int(sum(group.valid_BL.sum() for group in groups))
        context = None if text is None else text(prompt_of[members[0]])
        parts = method.reduce_pool(groups, min(budget, left), context)
        done.update(zip(members, parts, strict=True))
    return [done[i] for i in range(len(visions))]
