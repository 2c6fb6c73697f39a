"""Signals of a decoder layer from its queries, keys and neurons, by position.

B prompts, H heads, G key heads, N positions the layer holds, d width of a head, T text tokens of a
prompt (or positions asked for), K values of a signal per position, F neurons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.functional.attention import attention_heads, attention_rows
from tokensieve.functional.neurons import shared_neurons
from tokensieve.types import Kind

_PART = 256  # rows of attention at a time
ROTATED = (
    Kind.LAST_ATTENTION, Kind.TEXT_ATTENTION, Kind.TEXT_PRIORITY, Kind.RECEIVED_ATTENTION,
    Kind.KEYS, Kind.ALL_KEYS, Kind.TEXT_KEY_NORMS,
)  # fmt: skip
UNROTATED = (
    Kind.LAST_UNROTATED, Kind.LAST_TO_VISUAL, Kind.MEAN_UNROTATED, Kind.KEYS_UNROTATED,
)  # fmt: skip
NEURONS = (Kind.SHARED_NEURONS,)


@dataclass(frozen=True)
class Held:
    """What a layer holds, by its own positions.

    real: all but padding. text: the words methods choose by, as `Asked.seeing` says. visual: rows
    of pictures but newline rows. read: the prompt, without answers that `labels` mark. place:
    where each stands in the whole prompt, which is what windows count.
    """

    real_BN: Bool[Tensor, "B N"]
    text_BN: Bool[Tensor, "B N"]
    visual_BN: Bool[Tensor, "B N"]
    read_BN: Bool[Tensor, "B N"]
    place_BN: Int[Tensor, "B N"]


@dataclass
class Heard:
    query: Tensor | None = None  # (B, H, N, d), as the attention gets it
    key: Tensor | None = None
    raw_query: Tensor | None = None  # (B, H, N, d) before rotary positions
    raw_key: Tensor | None = None
    neurons: Tensor | None = None  # (B, N, F) of the feed-forward part
    scaling: float = 1.0
    window: int | None = None  # places the layer looks back; None: all
    mask: Tensor | None = None  # (B or 1, 1, N, N) what each sees, where the layer is told


def signal_of(kind: Kind, heard: Heard, held: Held) -> Float[Tensor, "B N K"]:
    """One kind, by position."""
    if kind is Kind.SHARED_NEURONS and heard.neurons is not None:
        read_BN = held.read_BN & held.real_BN
        return shared_neurons(heard.neurons.float(), read_BN)[..., None].float()
    raw = kind in UNROTATED
    query, key = (heard.raw_query, heard.raw_key) if raw else (heard.query, heard.key)
    if query is None or key is None:
        raise UnsupportedError(
            "Expected a layer whose queries and keys can be read. Got one that computed none. Use "
            "a method that reads no attention."
        )
    if kind is Kind.KEYS:
        return key.float().mean(1)
    if kind in (Kind.KEYS_UNROTATED, Kind.ALL_KEYS):
        return key.float().transpose(1, 2).flatten(2)
    if kind is Kind.TEXT_KEY_NORMS:
        at_BT, real_BT = places_of(held.text_BN)
        norm_BT = key.float().abs().sum((1, 3)).gather(1, at_BT).masked_fill(~real_BT, 0)
        return norm_BT[:, None].expand(-1, key.shape[2], -1)
    if kind is Kind.MEAN_UNROTATED:
        seen_BN = held.visual_BN
        total = query.float().masked_fill(~seen_BN[:, None, :, None], 0).sum(2, keepdim=True)
        mean = total / seen_BN.sum(-1).clamp(1)[:, None, None, None]
        return attention_rows(mean, key, heard.scaling, seen_BN[:, None, None]).mT
    if kind is Kind.TEXT_ATTENTION:
        return _rows(query, key, heard, held, *places_of(held.text_BN))
    if kind is Kind.TEXT_PRIORITY:
        return _priority(query, key, heard, held)
    if kind is Kind.RECEIVED_ATTENTION:
        return _received(query, key, heard, held)
    places = torch.arange(held.read_BN.shape[1], device=held.read_BN.device)
    last_B1 = torch.where(held.read_BN, places, -1).amax(-1, keepdim=True).clamp_min(0)
    if kind is Kind.LAST_TO_VISUAL:
        held = replace(held, real_BN=held.visual_BN)
    return _rows(query, key, heard, held, last_B1, torch.ones_like(last_B1).bool())


def _received(query: Tensor, key: Tensor, heard: Heard, held: Held) -> Float[Tensor, "B N 1"]:
    """Mean attention from all real positions of the prompt, some rows at a time."""
    at_BT, real_BT = places_of(held.read_BN)
    total_BN1 = torch.zeros(*held.real_BN.shape, 1, device=query.device)
    for at, real in zip(torch.split(at_BT, _PART, 1), torch.split(real_BT, _PART, 1), strict=True):
        total_BN1 += _rows(query, key, heard, held, at, real).sum(-1, keepdim=True)
    return total_BN1 / real_BT.sum(-1).clamp(1)[:, None, None]


def _priority(query: Tensor, key: Tensor, heard: Heard, held: Held) -> Float[Tensor, "B N T"]:
    """Attention from text, mean over the half of the heads (rounded up) of most of it to visual
    tokens."""
    rows_BHTN = _heads(query, key, heard, held, *places_of(held.text_BN))
    visual_BHTN = rows_BHTN.masked_fill(~held.visual_BN[:, None, None], 0)
    best_Bh = visual_BHTN.sum((2, 3)).topk(-(-query.shape[1] // 2), sorted=False).indices
    chosen = rows_BHTN.gather(1, best_Bh[..., None, None].expand(-1, -1, *rows_BHTN.shape[2:]))
    return chosen.mean(1).mT


def _rows(
    query: Tensor, key: Tensor, heard: Heard, held: Held,
    at_BT: Int[Tensor, "B T"], real_BT: Bool[Tensor, "B T"],
) -> Float[Tensor, "B N T"]:  # fmt: skip
    """Attention from the positions `at_BT`, each over the real positions up to itself, in its
    window; mean over heads."""
    B, N = held.real_BN.shape
    parts = [query.new_zeros(B, 0, N, dtype=torch.float32)]
    for at, real in zip(torch.split(at_BT, _PART, 1), torch.split(real_BT, _PART, 1), strict=True):
        taken, seen = _asked(query, heard, held, at, real)
        parts.append(attention_rows(taken, key, heard.scaling, seen))
    return torch.cat(parts, 1).mT


def _heads(
    query: Tensor, key: Tensor, heard: Heard, held: Held,
    at_BT: Int[Tensor, "B T"], real_BT: Bool[Tensor, "B T"],
) -> Float[Tensor, "B H T N"]:  # fmt: skip
    """`_rows` head by head."""
    taken, seen = _asked(query, heard, held, at_BT, real_BT)
    return attention_heads(taken, key, heard.scaling, seen)


def _asked(
    query: Tensor, heard: Heard, held: Held, at_BT: Tensor, real_BT: Tensor
) -> tuple[Float[Tensor, "B H T d"], Bool[Tensor, "B 1 T N"]]:
    """The queries of some positions, and what each of them sees."""
    B, H, N, d = query.shape
    taken = query.gather(2, at_BT[:, None, :, None].expand(B, H, at_BT.shape[1], d))
    places = torch.arange(N, device=query.device)
    if heard.mask is None:
        seen = places <= at_BT[..., None]
    else:  # visual tokens may see each other, as Gemma 3's do
        told = heard.mask[:, 0].expand(B, N, N)
        seen = told.gather(1, at_BT[..., None].expand(B, at_BT.shape[1], N))
    seen = seen & held.real_BN[:, None] & real_BT[..., None]
    if heard.window is not None:
        back = held.place_BN.gather(1, at_BT)[..., None] - held.place_BN[:, None]
        seen &= back < heard.window
    return taken, seen[:, None]


def places_of(mask_BN: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Positions where a prompt's mask is True, in order, and which of them are real."""
    T = int(mask_BN.sum(-1).max())
    at_BT = (~mask_BN).long().argsort(dim=-1, stable=True)[:, :T]
    return at_BT, mask_BN.gather(1, at_BT)
