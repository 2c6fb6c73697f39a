"""What a decoder layer's attention says about visual tokens, for a cut to choose by: the layer just
run, or the layer at the cut itself, run as far as its queries and keys.

B prompts, H heads, G key heads, N positions the layer holds, S prompt length, d width of a head, T
text tokens of a prompt, K values of a signal per position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import NonFiniteError, UnsupportedError
from tokensieve.hf.attention.tap import tapped
from tokensieve.hf.families.towers import attention_in
from tokensieve.hf.llm.cut import take_arguments
from tokensieve.hf.llm.heard import NEURONS, ROTATED, UNROTATED, Heard, Held, signal_of
from tokensieve.hf.llm.masks import window_of
from tokensieve.hf.prompt.compaction import Gather
from tokensieve.hf.runtime.compat import CACHE_NAMES
from tokensieve.hf.runtime.devices import moved
from tokensieve.hf.runtime.hooks import Action, Point, When, acting
from tokensieve.types import Kind, Signal

_NOT_AHEAD = ("attention_mask", "hidden_states", *CACHE_NAMES)  # a look ahead leaves no trace


class _EnoughError(Exception):
    """A look ahead has its queries and keys: nothing behind them need run."""


def check_signals(signals: Mapping[str, Signal], name: str) -> None:
    """Raise `UnsupportedError` for signals a layer of an LLM does not give."""
    for signal in signals.values():
        known = (*ROTATED, *UNROTATED, *NEURONS, Kind.SALIENCY)
        misplaced = signal.block is not None or (signal.kind in NEURONS and signal.ahead)
        if signal.kind not in known or misplaced:
            raise UnsupportedError(
                f"Expected signals of the LLM's layer just run ({', '.join(ROTATED)}, "
                f"{', '.join((*UNROTATED, *NEURONS))}), or with `ahead` of the one at the cut. Got "
                f"{signal} from '{name}'. Ask for one of them."
            )


class Listening:
    """Hears the attention of the layers right before some cuts, or at them, while the prompt is
    read.

    wanted: the signals each cut asks for, by its layer. Nothing of other layers is touched, and
    nothing is kept longer than until its cut.

    Raises `UnsupportedError` for attention without separate query and key projections where
    signals without rotary positions are asked for.
    """

    def __init__(self, decoder: Any, wanted: Mapping[int, Mapping[str, Signal]]) -> None:
        self.decoder = decoder
        every = {at: _heard(decoder.layers[at], signals) for at, signals in wanted.items()}
        self.wanted = {at: signals for at, signals in every.items() if signals}
        self.heard: dict[tuple[int, bool], Heard] = {}  # by cut, and whether of its own layer
        self.rotated: list[Any] = []  # attention modules whose queries and keys are read
        self.actions: dict[Point, Action] = {}  # behind projections, before rotary positions
        self.cut_of: dict[tuple[int, bool], int] = {}  # by id of the attention module
        self.ahead = False  # a layer is being run as far as its queries and keys
        for at, signals in self.wanted.items():
            for signal in signals.values():
                self._prepare(at, signal)

    def _prepare(self, at: int, signal: Signal) -> None:
        if signal.kind in NEURONS:
            self._hear_neurons(at)
            return
        attention = attention_in(self.decoder.layers[signal.layer_at(at)])
        if attention is None:
            raise UnsupportedError(
                f"Expected attention in layer {signal.layer_at(at)} of the LLM. Got none. Use a "
                "method that reads no attention."
            )
        self.cut_of[id(attention), signal.ahead] = at
        if (signal.kind in ROTATED or signal.ahead) and attention not in self.rotated:
            self.rotated.append(attention)
        if signal.kind in UNROTATED:
            self._hear_projections(attention)

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open, what runs in this thread is heard; afterwards nothing of it is kept."""
        try:
            with acting(self.actions), tapped(self.rotated, self._seen):
                yield
        finally:
            self.heard = {}

    def _seen(
        self, module: Any, query: Tensor, key: Tensor, scaling: float, mask: Tensor | None
    ) -> None:
        if (heard := self._of(module)) is not None:
            heard.query, heard.key, heard.scaling = query.detach(), key.detach(), scaling
            if mask is not None and mask.shape[-2:] == (query.shape[-2], key.shape[-2]):
                hides = mask.dtype != torch.bool
                heard.mask = mask > torch.finfo(mask.dtype).min / 2 if hides else mask
        if self.ahead:
            raise _EnoughError

    def _of(self, attention: Any) -> Heard | None:
        """Where to put what is heard of a module now; None: no cut asks for it."""
        at = self.cut_of.get((id(attention), self.ahead))
        return None if at is None else self.heard.setdefault((at, self.ahead), Heard())

    @torch.no_grad()
    def look_ahead(
        self, at: int, hidden_ETD: Tensor, kwargs: Mapping[str, Any], held: Gather | None
    ) -> None:
        """Run layer `at` as far as its queries and keys, where its cut asks for them.

        kwargs: what the model hands the layer; held: what is left there. No cache is written.
        """
        if not any(signal.ahead for signal in self.wanted.get(at, {}).values()):
            return
        given = {name: value for name, value in kwargs.items() if name not in _NOT_AHEAD}
        given = given if held is None else take_arguments(given, held)
        self.ahead = True
        try:
            with suppress(_EnoughError):
                self.decoder.layers[at].forward(hidden_ETD, **given)
        finally:
            self.ahead = False

    def _hear_neurons(self, at: int) -> None:
        layer = self.decoder.layers[at - 1]
        last = getattr(getattr(layer, "mlp", None), "down_proj", None)
        if not isinstance(last, torch.nn.Module):
            raise UnsupportedError(
                f"Expected a layer with `mlp.down_proj`. Got {type(layer).__name__}. Use a method "
                "that reads no neurons."
            )

        def before(_module: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
            self.heard.setdefault((at, False), Heard()).neurons = args[0].detach()

        self.actions[Point(last, When.BEFORE)] = before

    def _hear_projections(self, attention: Any) -> None:
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

            def after(
                _module: Any, _args: Any, out: Tensor, raw: str = raw, name: str = projection
            ) -> None:
                if (heard := self._of(attention)) is None:
                    return
                setattr(heard, raw, _by_head(attention, name, out.detach()))
                heard.scaling = float(attention.scaling)

            self.actions[Point(module, When.AFTER)] = after

    @torch.no_grad()
    def signals(self, at: int, held: Held, repeats: int) -> dict[str, Float[Tensor, "B N K"]]:
        """The signals of the cut at layer `at`, by the positions of what reaches it.

        repeats: rows a prompt has (beams); they are alike, and the first is read. T is that of the
        longest text; columns behind a prompt's own are zero.
        """
        if at not in self.wanted:
            return {}
        wanted, found = self.wanted[at], {}
        for ahead in dict.fromkeys(signal.ahead for signal in wanted.values()):
            heard = moved(self.heard.pop((at, ahead)), held.real_BN.device)
            heard.window = window_of(self.decoder, at if ahead else at - 1)
            for name in ("query", "key", "raw_query", "raw_key", "neurons"):
                if (whole := getattr(heard, name)) is not None:
                    setattr(heard, name, whole[::repeats])
            if heard.mask is not None and len(heard.mask) > 1:
                heard.mask = heard.mask[::repeats]
            for name, signal in wanted.items():
                if signal.ahead == ahead:
                    found[name] = signal_of(signal.kind, heard, held)
        return found


def _by_head(attention: Any, projection: str, out: Tensor) -> Float[Tensor, "B H N d"]:
    """What a projection gives, or a norm behind it: before heads come to the front, or after."""
    heads = getattr(attention, projection).out_features // attention.head_dim
    if out.ndim == 4 and out.shape[1] == heads != out.shape[2]:  # Exaone's norms
        return out
    return out.reshape(*out.shape[:2], -1, attention.head_dim).transpose(1, 2)


def _heard(layer: Any, signals: Mapping[str, Signal]) -> dict[str, Signal]:
    """Those that attention says; a run of the layer says the others (`probe`). layer: the one at
    the cut; where it has no attention, as some of a hybrid, the one before is heard."""
    able = attention_in(layer) is not None
    return {
        name: signal if able else replace(signal, ahead=False)
        for name, signal in signals.items()
        if signal.kind is not Kind.SALIENCY
    }


def by_kind(kind: Kind, parts_nLK: Sequence[Tensor], texts: Sequence[int]) -> list[Tensor]:
    """Each picture's signal in the shape of its kind. texts: T of the prompt of each picture."""
    if kind in (Kind.TEXT_ATTENTION, Kind.TEXT_PRIORITY, Kind.TEXT_KEY_NORMS):
        return [part[..., :text] for part, text in zip(parts_nLK, texts, strict=True)]
    if kind in (Kind.KEYS, Kind.ALL_KEYS, Kind.KEYS_UNROTATED):
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
