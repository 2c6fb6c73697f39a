"""What a decoder layer's attention says about visual tokens, for the layer behind it to choose by.

B prompts, H heads, G key heads, N positions the layer holds, S prompt length, d width of a head, T
text tokens of a prompt, K values of a signal per position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import NonFiniteError, UnsupportedError
from tokensieve.functional.attention import attention_rows
from tokensieve.hf.attention.tap import tapped
from tokensieve.hf.families.towers import attention_in
from tokensieve.hf.llm.masks import window_of
from tokensieve.hf.runtime.devices import moved
from tokensieve.hf.runtime.hooks import Action, Point, When, acting
from tokensieve.types import Kind, Signal

_PART = 256  # rows of attention at a time
_ROTATED = (Kind.LAST_ATTENTION, Kind.TEXT_ATTENTION, Kind.KEYS)
_UNROTATED = (Kind.LAST_UNROTATED, Kind.MEAN_UNROTATED, Kind.KEYS_UNROTATED)


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
class _Heard:
    query: Tensor | None = None  # (B, H, N, d), as the attention gets it
    key: Tensor | None = None
    raw_query: Tensor | None = None  # (B, H, N, d) before rotary positions
    raw_key: Tensor | None = None
    scaling: float = 1.0
    window: int | None = None  # places the layer looks back; None: all


def check_signals(signals: Mapping[str, Signal], name: str) -> None:
    """Raise `UnsupportedError` for signals a layer of an LLM does not give."""
    for signal in signals.values():
        if signal.kind not in (*_ROTATED, *_UNROTATED) or signal.block is not None:
            raise UnsupportedError(
                f"Expected signals of the LLM's layer just run ({', '.join(_ROTATED)}, "
                f"{', '.join(_UNROTATED)}). Got {signal} from '{name}'. Ask for one of them."
            )


class Listening:
    """Hears the attention of the layers right before some cuts, while the prompt is read.

    wanted: the signals each cut asks for, by its layer. Nothing of other layers is touched, and
    nothing is kept longer than until its cut.

    Raises `UnsupportedError` for attention without separate query and key projections where
    signals without rotary positions are asked for.
    """

    def __init__(self, decoder: Any, wanted: Mapping[int, Mapping[str, Signal]]) -> None:
        self.decoder = decoder
        self.wanted = {at: signals for at, signals in wanted.items() if signals}
        self.heard: dict[int, _Heard] = {}
        self.rotated: list[Any] = []  # attention modules whose queries and keys are read
        self.actions: dict[Point, Action] = {}  # behind projections, before rotary positions
        self.cut_of: dict[int, int] = {}  # by id of the attention module
        for at, signals in self.wanted.items():
            attention = attention_in(decoder.layers[at - 1])
            if attention is None:
                raise UnsupportedError(
                    f"Expected attention in layer {at - 1} of the LLM. Got none. Use a method "
                    "that reads no attention."
                )
            self.cut_of[id(attention)] = at
            kinds = {signal.kind for signal in signals.values()}
            if kinds & set(_ROTATED):
                self.rotated.append(attention)
            if kinds & set(_UNROTATED):
                self._hear_projections(attention, at)

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open, what runs in this thread is heard; afterwards nothing of it is kept."""
        try:
            with acting(self.actions), tapped(self.rotated, self._seen):
                yield
        finally:
            self.heard = {}

    def _seen(
        self, module: Any, query: Tensor, key: Tensor, scaling: float, _mask: Tensor | None
    ) -> None:
        heard = self.heard.setdefault(self.cut_of[id(module)], _Heard())
        heard.query, heard.key, heard.scaling = query.detach(), key.detach(), scaling

    def _hear_projections(self, attention: Any, at: int) -> None:
        for raw, norm, projection in (
            ("raw_query", "q_norm", "q_proj"),
            ("raw_key", "k_norm", "k_proj"),
        ):
            module = getattr(attention, norm, None) or getattr(attention, projection, None)
            if not isinstance(module, torch.nn.Module):
                raise UnsupportedError(
                    f"Expected attention with a '{projection}' layer. Got "
                    f"{type(attention).__name__}. Use a method that needs no attention without "
                    "rotary positions."
                )

            def after(_module: Any, _args: Any, out: Tensor, raw: str = raw) -> None:
                heard = self.heard.setdefault(at, _Heard())
                heads = out.detach().reshape(*out.shape[:2], -1, attention.head_dim)
                setattr(heard, raw, heads.transpose(1, 2))
                heard.scaling = float(attention.scaling)

            self.actions[Point(module, When.AFTER)] = after

    @torch.no_grad()
    def signals(self, at: int, held: Held, repeats: int) -> dict[str, Float[Tensor, "B N K"]]:
        """The signals of the cut at layer `at`, by the positions of the layer before it.

        repeats: rows a prompt has (beams); they are alike, and the first is read. T is that of the
        longest text; columns behind a prompt's own are zero.
        """
        if at not in self.wanted:
            return {}
        heard = moved(self.heard.pop(at), held.real_BN.device)
        heard.window = window_of(self.decoder, at - 1)
        for name in ("query", "key", "raw_query", "raw_key"):
            if (whole := getattr(heard, name)) is not None:
                setattr(heard, name, whole[::repeats])
        return {name: _signal(signal.kind, heard, held) for name, signal in self.wanted[at].items()}


def _signal(kind: Kind, heard: _Heard, held: Held) -> Float[Tensor, "B N K"]:
    """One kind, by position."""
    raw = kind in _UNROTATED
    query, key = (heard.raw_query, heard.raw_key) if raw else (heard.query, heard.key)
    if query is None or key is None:
        raise UnsupportedError(
            "Expected a layer whose queries and keys can be read. Got one that computed none. Use "
            "a method that reads no attention."
        )
    if kind is Kind.KEYS:
        return key.float().mean(1)
    if kind is Kind.KEYS_UNROTATED:
        return key.float().transpose(1, 2).flatten(2)
    if kind is Kind.MEAN_UNROTATED:
        seen_BN = held.visual_BN
        total = query.float().masked_fill(~seen_BN[:, None, :, None], 0).sum(2, keepdim=True)
        mean = total / seen_BN.sum(-1).clamp(1)[:, None, None, None]
        return attention_rows(mean, key, heard.scaling, seen_BN[:, None, None]).mT
    if kind is Kind.TEXT_ATTENTION:
        return _rows(query, key, heard, held, *text_places(held.text_BN))
    places = torch.arange(held.read_BN.shape[1], device=held.read_BN.device)
    last_B1 = torch.where(held.read_BN, places, -1).amax(-1, keepdim=True).clamp_min(0)
    return _rows(query, key, heard, held, last_B1, torch.ones_like(last_B1).bool())


def _rows(
    query: Tensor, key: Tensor, heard: _Heard, held: Held,
    at_BT: Int[Tensor, "B T"], real_BT: Bool[Tensor, "B T"],
) -> Float[Tensor, "B N T"]:  # fmt: skip
    """Attention from the positions `at_BT`, each over the real positions up to itself, in its
    window."""
    B, H, N, d = query.shape
    places = torch.arange(N, device=query.device)
    parts = [query.new_zeros(B, 0, N, dtype=torch.float32)]
    for at, real in zip(torch.split(at_BT, _PART, 1), torch.split(real_BT, _PART, 1), strict=True):
        taken = query.gather(2, at[:, None, :, None].expand(B, H, at.shape[1], d))
        seen = (places <= at[..., None]) & held.real_BN[:, None] & real[..., None]
        if heard.window is not None:
            back = held.place_BN.gather(1, at)[..., None] - held.place_BN[:, None]
            seen &= back < heard.window
        parts.append(attention_rows(taken, key, heard.scaling, seen[:, None]))
    return torch.cat(parts, 1).mT


def text_places(text_BN: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Positions of each prompt's text tokens in order, and which of them are real."""
    T = int(text_BN.sum(-1).max())
    at_BT = (~text_BN).long().argsort(dim=-1, stable=True)[:, :T]
    return at_BT, text_BN.gather(1, at_BT)


def by_kind(kind: Kind, parts_nLK: Sequence[Tensor], texts: Sequence[int]) -> list[Tensor]:
    """Each picture's signal in the shape of its kind. texts: T of the prompt of each picture."""
    if kind is Kind.TEXT_ATTENTION:
        return [part[..., :text] for part, text in zip(parts_nLK, texts, strict=True)]
    if kind in (Kind.KEYS, Kind.KEYS_UNROTATED):
        return list(parts_nLK)
    return [part[..., 0] for part in parts_nLK]


def require_finite(parts: Sequence[Tensor], layer: int) -> None:
    """Raise `NonFiniteError` naming the LLM's `layer` for NaN or Inf in a signal of it."""
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise NonFiniteError(
            f"Expected finite numbers in the attention of layer {layer} of the LLM. Got NaN or "
            "Inf. Check the picture and the model's dtype (float16 overflows in some models; try "
            "bfloat16)."
        )
