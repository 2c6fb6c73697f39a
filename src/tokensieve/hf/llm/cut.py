"""Inputs of a decoder layer with some positions taken out.

B prompts, S prompt length, T length after, H heads, Q queries, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.prompt.compaction import Gather
from tokensieve.hf.runtime.devices import moved

# one number per place of the prompt; the latter says which of Ernie's experts a token goes to
_PLACES = ("position_ids", "moe_mm_token_type_ids")


def take_rows(values: Tensor, index_BT: Int[Tensor, "B T"]) -> Tensor:
    """(..., B or 1, S, D) to (..., B, T, D)."""
    index_BT = index_BT.to(values.device)
    *lead, _, S, D = values.shape
    B, T = index_BT.shape
    return values.expand(*lead, B, S, D).gather(-2, index_BT[..., None].expand(*lead, B, T, D))


def take_places(values: Tensor, index_BT: Int[Tensor, "B T"]) -> Tensor:
    """(..., B or 1, S) to (..., B, T)."""
    return take_rows(values[..., None], index_BT)[..., 0]


def take_rotary(rotary: Any, index_BT: Int[Tensor, "B T"]) -> Any:
    """Rotary embeddings of the places: cosines and sines, or one tensor of complex numbers."""
    if isinstance(rotary, Tensor):
        return take_rows(rotary, index_BT)
    return tuple(take_rows(values, index_BT) for values in rotary)


def put_back(rows_BTD: Float[Tensor, "B T D"], gather: Gather, length: int) -> Tensor:
    """(B, S, D) rows at the positions they came from, zeros where there are none."""
    gather = moved(gather, rows_BTD.device)
    out = rows_BTD.new_zeros(rows_BTD.shape[0], length, rows_BTD.shape[-1])
    real = gather.real_BT
    row = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
    return out.index_put((row[real], gather.index_BT[real]), rows_BTD[real])


def compose(before: Gather | None, after: Gather, length: int) -> Int[Tensor, "B T"]:
    """Where each position of `after` stands in a sequence already cut to `before`."""
    if before is None:
        return after.index_BT
    before = moved(before, after.real_BT.device)
    place = torch.zeros(len(before.index_BT), length, dtype=torch.long, device=after.real_BT.device)
    T = before.index_BT.shape[1]
    row = torch.arange(len(place), device=place.device)[:, None].expand_as(before.index_BT)
    local = torch.arange(T, device=place.device).expand_as(before.index_BT)
    real = before.real_BT
    place[row[real], before.index_BT[real]] = local[real]
    return place.gather(1, after.index_BT)


def take_arguments(kwargs: dict[str, Any], gather: Gather) -> dict[str, Any]:
    """What a layer is handed beside hidden states and mask, cut to what it still holds."""
    taken = dict(kwargs)
    if (rotary := kwargs.get("position_embeddings")) is not None:
        taken["position_embeddings"] = take_rotary(rotary, gather.index_BT)
    for name in _PLACES:
        if (places := kwargs.get(name)) is not None:
            taken[name] = take_places(places, gather.index_BT)
    return taken


def take_beside(rest: tuple[Any, ...], length: int, gather: Gather) -> tuple[Any, ...]:
    """The same of what a layer is handed behind its hidden states by place: rows of the prompt's
    length (Gemma 4's embeddings for each layer), other things as they are."""
    return tuple(
        take_rows(one, gather.index_BT)
        if isinstance(one, Tensor) and one.ndim == 3 and one.shape[1] == length
        else one
        for one in rest
    )


def forget(cache: Any, gathers: Mapping[int, Gather], depth: int, length: int) -> None:
    """Leave in the cache of each layer from the first cut on what the last one left.

    gathers: what is left, by the first layer of each.

    Raises `UnsupportedError` for a layer that holds other tokens than these, as one with a window.
    """
    last = held = gathers[max(gathers)]
    for number in range(min(gathers), depth):
        held = gathers.get(number, held)
        layer = cache.layers[number]
        if held is last or getattr(layer, "keys", None) is None:
            continue
        if layer.keys.shape[2] != held.index_BT.shape[1]:
            raise UnsupportedError(
                f"Expected layer {number} of the LLM to hold the {held.index_BT.shape[1]} tokens "
                f"it read, to forget some of them. Got {layer.keys.shape[2]}. Pass "
                "output_cache=False."
            )
        index_BT = compose(held, moved(last, layer.keys.device), length)
        for name in ("keys", "values"):
            whole = getattr(layer, name)
            at = index_BT[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[-1])
            setattr(layer, name, whole.gather(2, at))


def prefill_mask(mask: Any, gather: Gather, *, flash: bool) -> Tensor | None:
    """The mask of a layer that reads the prompt for the first time, cut to what it still holds.

    mask: None, (B, S), or bool or additive (B or 1, H, S, S). Padded places are hidden from all.
    """
    gather = moved(gather, mask.device) if isinstance(mask, Tensor) else gather
    index_BT, real_BT = gather.index_BT, gather.real_BT
    T = index_BT.shape[1]
    if mask is None:
        if flash:  # told even where all are real: gaps in position ids may read as packed prompts
            return real_BT.long()
        if bool(real_BT.all()):
            return None  # causal in the order of the prompt, as before
        seen = torch.ones(T, T, dtype=torch.bool, device=index_BT.device).tril()
        return _own_place(seen & real_BT[:, None, None], real_BT)
    mask = _tensor(mask)
    if mask.ndim == 2:
        return take_places(mask, index_BT) * real_BT.to(mask.dtype)
    rows = take_rows(mask.transpose(0, 1), index_BT).transpose(0, 1)
    return _own_place(_take_keys(rows, gather), real_BT)


def decode_mask(mask: Any, gather: Gather, length: int, new: int, *, flash: bool) -> Tensor | None:
    """The mask of new tokens over a layer's shortened cache and themselves.

    mask: as made for a layer that holds all `length` prompt tokens and `new` more.
    """
    gather = moved(gather, mask.device) if isinstance(mask, Tensor) else gather
    real_BT = gather.real_BT
    if mask is None:
        if bool(real_BT.all()):
            return None
        ones = real_BT.new_ones(len(real_BT), new)
        seen = torch.cat([real_BT, ones], 1)
        return seen.long() if flash else seen[:, None, None]
    mask = _tensor(mask)
    prompt, rest = mask[..., :length], mask[..., length:]
    if mask.ndim == 2:
        prompt = take_places(prompt, gather.index_BT) * real_BT.to(mask.dtype)
        return torch.cat([prompt, rest], -1)
    taken = _take_keys(prompt, gather)
    return torch.cat([taken, rest.expand(*taken.shape[:-1], -1)], -1)


def _tensor(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor):
        raise UnsupportedError(
            f"Expected an attention mask as a tensor. Got a {type(mask).__name__}, as flex "
            "attention makes. Call model.set_attn_implementation('sdpa') to cut inside the LLM."
        )
    return mask


def _take_keys(mask: Tensor, gather: Gather) -> Tensor:
    """The last axis of (B or 1, H, Q, S) gathered to (B, H, Q, T), padded places hidden."""
    B, T = gather.index_BT.shape
    _, H, Q, S = mask.shape
    index = gather.index_BT[:, None, None].expand(B, H, Q, T)
    taken = mask.expand(B, H, Q, S).gather(-1, index)
    return taken.masked_fill(~gather.real_BT[:, None, None], _hidden(mask.dtype))


def _own_place(mask: Tensor, real_BT: Bool[Tensor, "B T"]) -> Tensor:
    """Padded places look at themselves, so that no row of (B, H, T, T) is empty."""
    own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device) & ~real_BT[:, None, None]
    return mask.masked_fill(own, True if mask.dtype == torch.bool else 0.0)


def _hidden(dtype: torch.dtype) -> float | bool:
    return False if dtype == torch.bool else torch.finfo(dtype).min
