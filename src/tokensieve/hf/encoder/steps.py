"""The site "encoder": fewer tokens behind some layers of the vision encoder.

Hooks only: behind a layer a method sees the patches' hidden states (CLS is left out and always
stays) and what the layer's attention says of them, and the layers behind are handed what is left,
at its own places: rotary positions, windows and masks of the tower go along. Crops of a batch that
are left with different numbers are padded, and padding is not attended to; towers that pack all
pictures in one row need none. Where the VLM reads, a layer or a merger, rows go back to the places
of their patches; a merged patch gets the row of the token that took it in. The family's own code
goes on from there, and rows without a token of their own are cut from the prompt like for any other
method.

B crops of all pictures, S tokens left of the fullest crop, T after a step, C width, K rows left of
all crops.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention.tap import tapped, weighed
from tokensieve.hf.encoder.heard import Heard
from tokensieve.hf.encoder.left import Wanted, schedule_of
from tokensieve.hf.encoder.run import ShortRun, named
from tokensieve.hf.runtime.devices import moved
from tokensieve.hf.runtime.hooks import Action, Point, When, acting
from tokensieve.methods.base import Method
from tokensieve.types import EncoderInfo, Kind, VisionTokens


class _HeardError(Exception):
    """A layer's queries and keys are known, which is all that was wanted of it."""


class EncoderSteps(ShortRun):
    """One run of an encoder with a method at work in it.

    Raises `BudgetError` for a budget the method's schedule does not reach, `ConfigError` for a
    schedule that grows; in the run `UnsupportedError` for attention that takes no mask of numbers
    where one is needed and for gradient checkpointing, and `NonFiniteError` naming the layer.
    """

    def __init__(
        self, model: Any, method: Method, info: EncoderInfo, wanted: Wanted, read: Collection[int]
    ) -> None:
        super().__init__(model, wanted, read)
        self.method = method
        self.asked = method.signals(info)
        self.schedules = {
            (n, c): schedule_of(method, n, c, self.block + 1)
            for n, c, less in zip(wanted.lengths, wanted.counts, wanted.shrinks, strict=True)
            if less
        }
        self.heard = Heard(self.cls, self.packed)
        self.due: int | None = None  # the layer whose step waits for what the next is handed

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While open, one run of the encoder in this thread is shortened."""
        if any(layer.training and _recomputed(layer) for layer in self.layers):
            raise UnsupportedError(
                "Expected no gradient checkpointing, which runs layers twice. Got it switched on "
                "in the vision encoder. Call model.gradient_checkpointing_disable()."
            )
        actions: dict[Point, Action] = {}
        for i, (layer, module) in enumerate(zip(self.layers, self.attention, strict=True)):
            if module is None:
                raise UnsupportedError(
                    f"Expected an encoder layer with attention. Got {type(layer).__name__}."
                )
            actions[Point(layer, When.BEFORE)] = self._before
            actions[Point(layer, When.AFTER)] = self._hook(i)
            actions[Point(module, When.BEFORE)] = self._attend
        for merger in self.mergers:
            actions[Point(merger, When.BEFORE)] = self._merge
        steps = [i for i in range(self.block + 1) if self._steps_at(i)] if self.asked else []
        heard = {id(self.attention[i]): i for i in steps if self._kinds(i, ahead=False)}

        def seen(module: nn.Module, *told: Any) -> None:
            if not self.looking:
                kinds = self._kinds(heard[id(module)], ahead=False)
                self.heard.add(kinds, False, moved(self.left, told[1].device), *told)

        modules = [module for module in self.attention if module is not None]
        with ExitStack() as stack:
            stack.enter_context(acting(actions))
            stack.enter_context(tapped([m for m in modules if id(m) in heard], seen))
            if self.packed and self.method.weighs_attention:
                stack.enter_context(weighed(modules, self._weigh))
            yield

    def _kinds(self, block: int, *, ahead: bool) -> list[Kind]:
        """What this layer is to tell, or the one behind it; where there is none, this tells all."""
        last = block + 1 == len(self.layers)
        asked = [s.kind for s in self.asked.values() if (s.ahead and not last) == ahead]
        return list(dict.fromkeys(asked))

    def _look_ahead(self, block: int, hidden: Tensor) -> None:
        """Hear the next layer's queries and keys, as if nothing were dropped; it stops there."""
        if not (kinds := self._kinds(block, ahead=True)):
            return

        def seen(_module: nn.Module, *told: Any) -> None:
            self.heard.add(kinds, True, self.left, *told)
            if self.heard.all_rows(True, self.left):
                raise _HeardError

        layer, module = self.layers[block + 1], self.attention[block + 1]
        self.looking, self.looked = True, self.bounds
        try:
            with tapped([] if module is None else [module], seen), torch.no_grad():
                layer(hidden, **self.given)
        except _HeardError:
            pass
        finally:
            self.looking = False
            self.at.pop(id(module), None)

    def _steps_at(self, block: int) -> list[tuple[int, int]]:
        """The kinds of crops, by patches and tokens wanted, that lose tokens behind this layer."""
        return [
            (n, c)
            for (n, c), counts in self.schedules.items()
            if counts[block] < (counts[block - 1] if block else n)
            or (not self.method.exact and counts[block] < n)
        ]

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A step that is due looks ahead through the windows of this layer."""
        if self.due is None or self.looking:
            return super()._before(module, args, kwargs)
        block, self.due = self.due, None
        given, first = named(module, args, kwargs)
        hidden = given[first]
        self.given = self._beside(given, first)
        del self.given[first]
        self.bounds = []
        self._look_ahead(block, hidden)
        given[first] = self._step(block, hidden, self._steps_at(block))
        self.heard.parts = {}
        return super()._before(module, (), given)

    def _hook(self, block: int) -> Callable[..., Any]:
        return lambda _module, _args, output: self._behind(block, output)

    def _behind(self, block: int, output: Any) -> Any:
        """What leaves a layer, with fewer tokens if a step is due; where it is read, put back."""
        hidden = output[0] if isinstance(output, tuple) else output
        self.left = moved(self.left, hidden.device)
        self.wanted = moved(self.wanted, hidden.device)
        if block == 0:
            self._check_run(hidden)
        if block <= self.block and (steps := self._steps_at(block)):
            if self.windowed and block not in self.read and self._kinds(block, ahead=True):
                self.due = block
                return None
            self._look_ahead(block, hidden)
            hidden = self._step(block, hidden, steps)
        self.heard.parts, self.given = {}, {}
        if block in self.read:
            self.short, self.put_back = hidden, True
            hidden = self._whole(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _step(self, block: int, hidden: Tensor, steps: Sequence[tuple[int, int]]) -> Tensor:
        """The hidden states behind a step of the method: (B, cls + T, C), or (..., K, C)."""
        tokens, left = self._crops(hidden), self.left
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
        self.left, self.stepped = left.reduced(kept, assign, order), True
        self._set_bias(hidden.dtype)
        new = new.gather(1, order[..., None].expand(-1, -1, new.shape[-1]))
        return self._rows(new, hidden)

    def _crops_of(self, n: int, c: int) -> Tensor:
        pairs = zip(self.wanted.lengths, self.wanted.counts, strict=True)
        rows = [b for b, pair in enumerate(pairs) if pair == (n, c)]
        return torch.tensor(rows, device=self.wanted.reaches_BP.device)

    def _vision(self, block: int, tokens: Tensor, reaches: Tensor, rows: Tensor) -> VisionTokens:
        valid = reaches[rows]
        signals = {}
        for name, asked in self.asked.items():
            ahead = asked.ahead and block + 1 < len(self.layers)
            found = self.heard.of(asked.kind, ahead, self.left)[rows]
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
        """What is added to attention logits, in a batch for padding too; None: nothing."""
        left = self.left
        weighs = self.method.weighs_attention and bool((left.size_BS != 1).any())
        if not weighs and (self.packed or bool(left.real_BS.all())):
            self.bias = None
            return
        logs = left.size_BS.log() if weighs else torch.zeros_like(left.size_BS)
        self.bias = logs.masked_fill(~left.real_BS, torch.finfo(dtype).min)
        if self.packed:
            self._require_masked()


def _recomputed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "gradient_checkpointing", False))
