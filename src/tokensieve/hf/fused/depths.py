"""Visual tokens that skip layers of a fused LLaVA's LLM: one forward at a time.

Hooks hand a layer with a router the tokens that go through it, with positions and mask cut to them,
and put what it made of them back among the others. Its cache holds just those; what they are is
noted on the cache, for what is decoded behind it.

B prompts, S prompt length, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.llm import cut
from tokensieve.hf.llm.masks import Masks, held_by
from tokensieve.hf.llm.stage import require_growing, require_once
from tokensieve.hf.prompt.compaction import Gather, pads_left
from tokensieve.hf.runtime.compat import cache_at
from tokensieve.hf.runtime.hooks import Action, Point, When, acting
from tokensieve.nn.depths import mixed

_NOTE = "_tokensieve_depths"  # on a cache: what its layers hold of a prompt


@dataclass
class Held:
    """What the layers of a cache hold of a prompt of S tokens: by layer, those that went through.

    masks: of layers that hold a part of it.
    """

    length: int
    masks: Masks
    gathers: dict[int, Gather] = field(default_factory=dict)

    def cropped(self, length: int) -> Held:
        """What is left where the cache was cropped to `length`, of every layer the same tokens.

        Raises `UnsupportedError` where layers lost different ones.
        """
        gone = torch.arange(length, self.length)
        left: dict[int, Gather] = {}
        for number, gather in self.gathers.items():
            index_BT, real_BT = gather.index_BT, gather.real_BT
            last = index_BT[:, -len(gone) :]
            if last.shape[1] < len(gone) or bool((last != gone.to(last.device)).any()):
                raise _shrunk(number)
            left[number] = Gather(index_BT[:, : -len(gone)], real_BT[:, : -len(gone)])
        return Held(length, replace(self.masks, length=length, made={}), left)


@contextmanager
def skipping(
    decoder: Any, routers: Any, ids_BS: Tensor | None, image: int, mask: Any, cache: Any
) -> Iterator[None]:
    """While open, a forward of the LLM lets visual tokens skip layers.

    ids: of what is read now; None where embeddings came instead. image: the id of a visual token.
    mask: of padding, (B, S) or longer, or None.

    Raises `UnsupportedError` for prompts whose visual tokens cannot be told (embeddings, masks of
    other shapes), pictures behind a filled cache, and what `_Reading` refuses.
    """
    held: Held | None = getattr(cache, _NOTE, None)
    read = 0 if cache is None else held_by(cache, 0)
    if read:
        if ids_BS is not None and bool((ids_BS == image).any()):
            raise UnsupportedError(
                "Expected pictures in the part of a prompt that is read first. Got some behind a "
                "filled cache, where layers hold different tokens. Pass the whole prompt at once."
            )
        if held is not None and read < held.length:
            setattr(cache, _NOTE, held := held.cropped(read))
        actions = {} if held is None else _Decoding(decoder, held).actions
    elif ids_BS is None:
        raise UnsupportedError(
            "Expected `input_ids`, which say what is a visual token. Got embeddings. Pass ids, and "
            "pictures as `pixel_values`."
        )
    elif not bool((visual_BS := ids_BS == image).any()):
        actions = {}
    else:
        actions = _Reading(decoder, routers, visual_BS, _padding(mask, ids_BS)).actions
    with acting(actions):
        yield


class _Reading:
    """A prompt is read: routers choose, and what goes through is noted on the cache.

    Raises `UnsupportedError` for a cache whose layers may not differ in length, gradient
    checkpointing, and prompts that a sieve shortens inside the LLM.
    """

    def __init__(self, decoder: Any, routers: Any, visual_BS: Tensor, real_BS: Tensor) -> None:
        self.decoder, self.routers = decoder, routers
        self.visual_BS, self.real_BS = visual_BS, real_BS
        self.held = Held(visual_BS.shape[1], Masks.of(decoder, real_BS))
        self.before: Tensor = torch.empty(0)  # of the layer at work, and the weights in it
        self.weight_BS: Tensor = torch.empty(0)
        require_once(decoder)
        self.actions: dict[Point, Action] = {}
        for number in routers.shares:
            layer = decoder.layers[number]
            self.actions[Point(layer, When.BEFORE)] = self._into(number)
            self.actions[Point(layer, When.AFTER)] = self._out_of(number)

    def _into(self, number: int) -> Action:
        def before(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
            if hidden.shape[1] != self.held.length:
                raise UnsupportedError(
                    f"Expected all {self.held.length} tokens at layer {number} of an LLM whose "
                    f"tokens skip layers. Got {hidden.shape[1]}. Use a method that acts before the "
                    "LLM."
                )
            cache = cache_at(module, args, kwargs)
            require_growing(cache)
            visual, real = (v.to(hidden.device) for v in (self.visual_BS, self.real_BS))
            chosen, self.weight_BS = self.routers(number, hidden, visual & real)
            keep_BS = real & (chosen | ~visual)
            gather = Gather.of(keep_BS, left=pads_left(real))
            self.held.gathers[number], self.before = gather, hidden
            if cache is not None:
                setattr(cache, _NOTE, self.held)
            named = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            mask = self.held.masks.prefill(number, kwargs.get("attention_mask"), gather)
            named = cut.take_arguments(named, gather) | {"attention_mask": mask}
            rest = cut.take_beside(rest, self.held.length, gather)
            return (cut.take_rows(hidden, gather.index_BT), *rest), named

        return before

    def _out_of(self, number: int) -> Action:
        def after(_module: Any, _args: Any, output: Any) -> Any:
            made = output[0] if isinstance(output, tuple) else output
            gather = self.held.gathers[number]
            through = cut.put_back(torch.ones_like(made[..., :1]), gather, self.held.length)
            whole = mixed(
                self.before, cut.put_back(made, gather, self.held.length), self.weight_BS,
                through[..., 0] > 0, self.visual_BS.to(made.device),
                symmetric=self.routers.config.kind == "p-mod",
            )  # fmt: skip
            self.before = torch.empty(0)
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        return after


class _Decoding:
    """Tokens are read behind a prompt: each layer sees what its cache holds of it."""

    def __init__(self, decoder: Any, held: Held) -> None:
        self.decoder, self.held = decoder, held
        held.masks.made = {}  # of the pass before
        self.actions: dict[Point, Action] = {
            Point(decoder.layers[number], When.BEFORE): self._into(number)
            for number in held.gathers
        }

    def _into(self, number: int) -> Action:
        def before(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache, gather = cache_at(module, args, kwargs), self.held.gathers[number]
            decoded = held_by(cache, 0) - hidden.shape[1] - self.held.length
            if held_by(cache, number) != gather.index_BT.shape[1] + decoded:
                raise _shrunk(number)
            mask = kwargs.get("attention_mask")
            mask = self.held.masks.decode(number, mask, gather, cache, hidden)
            return args, {**kwargs, "attention_mask": mask}

        return before


def _shrunk(number: int) -> UnsupportedError:
    return UnsupportedError(
        f"Expected a cache cropped no further than the text behind the pictures. Got one whose "
        f"layer {number} holds other tokens than the first. Read the prompt again."
    )


def _padding(mask: Any, ids_BS: Tensor) -> Bool[Tensor, "B S"]:
    """Where the prompt has tokens. Raises `UnsupportedError` for a mask of another shape."""
    if mask is None:
        return torch.ones_like(ids_BS, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != ids_BS.shape:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedError(
            f"Expected `attention_mask` as {tuple(ids_BS.shape)} ones and zeros, of a model whose "
            f"tokens skip layers. Got {shape}. Pass what the processor returns."
        )
    return mask.bool()
