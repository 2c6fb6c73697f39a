"""The site "encoder": fewer tokens behind some layers of the vision encoder.

Hooks only: behind a layer a method sees the patches' hidden states (CLS is left out and always
stays) and what the layer's attention says of them, and the layers behind are handed what is left.
Crops that are left with different numbers are padded, and padding is not attended to. Where the VLM
reads, rows go back to the places of their patches; a merged patch gets the row of the token that
took it in. The family's own code goes on from there, and rows without a token of their own are cut
from the prompt like for any other method.

B crops of all pictures, P patches of a crop, S tokens left of the fullest crop, T after a step, C
width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.functional.attention import attention_heads, attention_rows, received_attention
from tokensieve.hf.attention.tap import tapped
from tokensieve.hf.encoder.left import Left, Wanted, schedule_of
from tokensieve.hf.families.towers import attention_in, encoder_layers, has_cls, tower_of
from tokensieve.hf.runtime.devices import moved
from tokensieve.hf.runtime.hooks import Point, When, acting
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo, Kind, VisionTokens

_MASKED = ("sdpa", "eager")  # attention that takes a mask of numbers


class _HeardError(Exception):
    """A layer's queries and keys are known, which is all that was wanted of it."""


class EncoderSteps:
    """One run of an encoder with a method at work in it.

    Raises `BudgetError` for a budget the method's schedule does not reach, `ConfigError` for a
    schedule that grows; in the run `UnsupportedError` for attention that takes no mask of numbers
    where one is needed and for gradient checkpointing, and `NonFiniteError` naming the layer.
    """

    def __init__(self, model: Any, method: Method, info: EncoderInfo, wanted: Wanted) -> None:
        self.method, self.wanted, self.block = method, wanted, info.block
        self.layers = list(encoder_layers(model))
        self.cls = int(has_cls(model))
        config: Any = tower_of(model).config
        self.kind = str(config._attn_implementation)
        self.asked = method.signals(info)
        self.schedules = {
            (n, c): schedule_of(method, n, c, self.block + 1)
            for n, c, less in zip(wanted.lengths, wanted.counts, wanted.shrinks, strict=True)
            if less
        }
        crops, patches = wanted.reaches_BP.shape
        self.left = Left.whole(crops, patches, wanted.reaches_BP.device)
        self.signals: dict[tuple[Kind, bool], Tensor] = {}  # by kind, and whether of a layer ahead
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})  # to the layer at work
        self.looking = False  # ahead
        self.bias: Tensor | None = None
        self.short: Tensor | None = None  # what the layers behind the one that is read go on with
        self.put_back = False

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While open, one run of the encoder in this thread is shortened."""
        if any(layer.training and _recomputed(layer) for layer in self.layers):
            raise UnsupportedError(
                "Expected no gradient checkpointing, which runs layers twice. Got it switched on "
                "in the vision encoder. Call model.gradient_checkpointing_disable()."
            )
        attention = [attention_in(layer) for layer in self.layers]
        steps = [i for i in range(self.block + 1) if self._steps_at(i)] if self.asked else []
        actions: dict[Point, Any] = {}
        for i, (layer, module) in enumerate(zip(self.layers, attention, strict=True)):
            if module is None:
                raise UnsupportedError(
                    f"Expected an encoder layer with attention. Got {type(layer).__name__}."
                )
            if i <= self.block:
                actions[Point(layer, When.AFTER)] = self._hook(i)
                actions[Point(layer, When.BEFORE)] = self._remember
            else:
                actions[Point(layer, When.BEFORE)] = self._go_on
            actions[Point(module, When.BEFORE)] = self._attend
        heard = {id(attention[i]): i for i in steps if self._kinds(i, ahead=False)}

        def seen(module: nn.Module, *told: Any) -> None:
            if not self.looking:
                self._hear(heard[id(module)], False, *told)

        modules = [module for module in attention if module is not None and id(module) in heard]
        with acting(actions), tapped(modules, seen):
            yield

    def _kinds(self, block: int, *, ahead: bool) -> list[Kind]:
        """What this layer is to tell, or the one behind it; where there is none, this tells all."""
        last = block + 1 == len(self.layers)
        asked = [s.kind for s in self.asked.values() if (s.ahead and not last) == ahead]
        return list(dict.fromkeys(asked))

    def _look_ahead(self, block: int, hidden: Tensor) -> None:
        """Hear the next layer's queries and keys, as if nothing were dropped; it stops there."""
        if not self._kinds(block, ahead=True):
            return

        def seen(_module: nn.Module, *told: Any) -> None:
            self._hear(block, True, *told)
            raise _HeardError

        layer, (args, kwargs) = self.layers[block + 1], self.given
        module = attention_in(layer)
        self.looking = True
        try:
            with tapped([] if module is None else [module], seen), torch.no_grad():
                if args:
                    layer(hidden, *args[1:], **kwargs)
                else:
                    layer(**{**kwargs, "hidden_states": hidden})
        except _HeardError:
            pass
        finally:
            self.looking = False

    def _steps_at(self, block: int) -> list[tuple[int, int]]:
        """The kinds of crops, by patches and tokens wanted, that lose tokens behind this layer."""
        return [
            (n, c)
            for (n, c), counts in self.schedules.items()
            if counts[block] < (counts[block - 1] if block else n)
            or (not self.method.exact and counts[block] < n)
        ]

    def _hear(
        self, block: int, ahead: bool, query: Tensor, key: Tensor, scaling: float,
        mask: Tensor | None,
    ) -> None:  # fmt: skip
        query, key = query.detach(), key.detach()
        self._follow(key.device)
        for kind in self._kinds(block, ahead=ahead):
            self.signals[kind, ahead] = self._signal(kind, query, key, scaling, mask)

    def _signal(
        self, kind: Kind, query: Tensor, key: Tensor, scaling: float, mask: Tensor | None
    ) -> Tensor:
        cls = self.cls
        if kind is Kind.KEYS:
            return key[:, :, cls:].float().mean(1)
        if kind is Kind.CLS_ATTENTION and cls:
            return attention_rows(query[:, :, :1], key, scaling, mask)[:, 0, 1:]
        if kind is Kind.HEAD_MAPS:
            maps_BHSS = attention_heads(query[:, :, cls:], key, scaling, mask)[..., cls:]
            return maps_BHSS.permute(0, 2, 3, 1)
        if kind not in (Kind.CLS_ATTENTION, Kind.RECEIVED_ATTENTION):
            raise ConfigError(f"Expected a signal of an encoder layer. Got '{kind}'.")
        real_BS = _with_cls(self.left.real_BS, cls)
        total_BS = received_attention(query, key, scaling, mask, real_BS)
        return (total_BS / real_BS.sum(-1, keepdim=True))[:, cls:]

    def _attend(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Padding is not attended to, merged tokens as often as they stand for patches."""
        if self.bias is None:
            return None
        if self.kind not in _MASKED:
            raise UnsupportedError(
                f"Expected attention that takes a mask of numbers ({' or '.join(_MASKED)}), for "
                f"merged or different numbers of tokens inside the encoder. Got '{self.kind}'. "
                "Load the model with attn_implementation='sdpa', or use proportional=False."
            )
        hidden = args[0] if args else kwargs["hidden_states"]
        return args, {**kwargs, "attention_mask": self.bias.to(hidden.device)}

    def _remember(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given = args, kwargs

    def _go_on(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Layers behind the one that is read are run all the same: on what is left."""
        if self.short is None:
            return None
        short, self.short = self.short, None
        if args:
            return (short, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": short}

    def _hook(self, block: int) -> Callable[..., Any]:
        return lambda _module, _args, output: self._behind(block, output)

    def _behind(self, block: int, output: Any) -> Any:
        """What leaves a layer, with fewer tokens if a step is due; at the end, put back."""
        hidden = output[0] if isinstance(output, tuple) else output
        self._follow(hidden.device)
        if block == 0:
            self._check_run(hidden)
        if steps := self._steps_at(block):
            self._look_ahead(block, hidden)
            hidden = self._step(block, hidden, steps)
        self.signals, self.given = {}, ((), {})
        if block == self.block:
            self.short, self.put_back = hidden, True
            hidden = self._whole(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _follow(self, device: torch.device) -> None:
        """Layers may lie on several devices: what is known of the crops goes along."""
        self.left, self.wanted = moved(self.left, device), moved(self.wanted, device)

    def _check_run(self, hidden: Tensor) -> None:
        B, P = self.wanted.reaches_BP.shape
        if self.put_back or hidden.shape[:2] != (B, P + self.cls):
            raise UnsupportedError(
                f"Expected one run of the encoder over {B} crops of {P} patches. Got "
                f"{tuple(hidden.shape[:2])}. Pass pictures as the model's processor returns them."
            )

    def _step(self, block: int, hidden: Tensor, steps: Sequence[tuple[int, int]]) -> Tensor:
        """(B, cls + T, C) the hidden states behind a step of the method."""
        tokens, left = hidden[:, self.cls :], self.left
        real_BS = left.real_BS
        reaches = self.wanted.reaches_BP.gather(1, left.place_BS.clamp_min(0)) & real_BS
        kept, new = real_BS.clone(), tokens
        own = torch.arange(real_BS.shape[1], device=real_BS.device).expand(real_BS.shape)
        assign = own.masked_fill(~real_BS, -1)
        for n, c in steps:
            rows = self._crops_of(n, c)
            vision = self._vision(block, tokens, reaches, rows)
            vision.require_finite(f"layer {block} of the vision encoder")
            counts = torch.full((len(rows),), self.schedules[n, c][block], device=rows.device)
            counts = torch.minimum(counts, vision.valid_BL.sum(-1))
            made = self.method.at_block(block, c / n).reduce(vision, counts)
            kept[rows] = made.kept & vision.valid_BL
            gone = own[rows].masked_fill(~made.kept, -1)
            assign[rows] = gone if made.assign is None else made.assign
            if made.tokens is not None:
                new = new.clone() if new is tokens else new
                new[rows] = made.tokens.to(new.dtype)
        T = int(kept.sum(-1).max())
        order = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[:, :T]
        self.left = left.reduced(kept, assign, order)
        new = new.gather(1, order[..., None].expand(-1, -1, new.shape[-1]))
        self._set_bias(hidden.dtype)
        return torch.cat([hidden[:, : self.cls], new], dim=1)

    def _crops_of(self, n: int, c: int) -> Tensor:
        pairs = zip(self.wanted.lengths, self.wanted.counts, strict=True)
        rows = [b for b, pair in enumerate(pairs) if pair == (n, c)]
        return torch.tensor(rows, device=self.wanted.reaches_BP.device)

    def _vision(self, block: int, tokens: Tensor, reaches: Tensor, rows: Tensor) -> VisionTokens:
        valid = reaches[rows]
        signals = {}
        for name, asked in self.asked.items():
            ahead = asked.ahead and block + 1 < len(self.layers)
            found = self.signals[asked.kind, ahead][rows]
            if asked.kind is Kind.HEAD_MAPS:
                found = found.masked_fill(~(valid[:, None] & valid[..., None])[..., None], 0)
            else:
                found = found.masked_fill(~valid.view(*valid.shape, *[1] * (found.ndim - 2)), 0)
            signals[name] = found
        return VisionTokens(
            tokens[rows],
            valid=valid,
            keys=tuple(self.wanted.keys[row] for row in rows.tolist()),
            signals=signals,
            sizes=self.left.size_BS[rows],
            cls=bool(self.cls),
        )

    def _set_bias(self, dtype: torch.dtype) -> None:
        """(B, 1, 1, cls + T) to be added to attention logits; None where nothing is."""
        left = self.left
        weighs = self.method.weighs_attention and bool((left.size_BS != 1).any())
        if not weighs and bool(left.real_BS.all()):
            self.bias = None
            return
        logs = left.size_BS.log() if weighs else torch.zeros_like(left.size_BS)
        bias = torch.zeros(len(logs), self.cls + logs.shape[1], device=logs.device)
        bias[:, self.cls :] = logs.masked_fill(~left.real_BS, torch.finfo(dtype).min)
        self.bias = bias[:, None, None].to(dtype)

    def _whole(self, hidden: Tensor) -> Tensor:
        """(B, cls + P, C): every patch the row of the token that took it in."""
        rows = self.left.spread(hidden[:, self.cls :], self.wanted.groups_GM)
        return torch.cat([hidden[:, : self.cls], rows], dim=1)


def _recomputed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "gradient_checkpointing", False))


def _with_cls(real_BS: Tensor, cls: int) -> Tensor:
    return torch.cat([real_BS.new_ones(len(real_BS), cls), real_BS], dim=1)
