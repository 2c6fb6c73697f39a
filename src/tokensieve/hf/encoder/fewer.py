"""One run of an encoder over some of its patches, each at its own place.

Hooks only. The tower embeds every patch and finds out positions and windows as always; in front of
its first layer the rows of the patches that go are taken out, and with them their share of what
layers are handed beside: rotary positions, the bounds of windows, masks. Behind the tower's
mergers, or behind the layers the VLM reads, rows go back to their places, zeros where nothing was
computed, and the family's own code goes on. So a patch that stays is encoded as if those that go
could not be looked at, and nothing is computed for them.

B crops of a batch, S rows of a crop as the tower has them, T of those that stay; N rows of all
pictures packed, K of those that stay; C width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tokensieve.errors import UnsupportedError
from tokensieve.hf.families.towers import (
    attention_in,
    encoder_layers,
    mergers_of,
    patch_rows,
    tower_of,
)
from tokensieve.hf.runtime.hooks import Action, Point, When, acting

_ROWS = ("position_embeddings", "rotary_pos_emb")  # arguments of layers: one row per patch
_BOUNDS = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")  # where windows begin and end
_LONGEST = ("max_seqlen", "max_length_q", "max_length_k")
_MASKED = ("sdpa", "eager")  # attention that takes a mask of numbers


@dataclass
class FewerPatches:
    """One run of the tower of `model`.

    kept: (N,) or (B, S) which rows of the tower stay. tokens: (R,) which rows of the mergers'
    output stay, in the tower's order. read: the layers whose output the VLM reads.

    Raises, in the run, `UnsupportedError` for a tower that hands on other rows than it is known
    for, for attention that takes no mask where crops keep different numbers, and for gradient
    checkpointing.
    """

    model: Any
    kept: Bool[Tensor, "..."]
    tokens: Bool[Tensor, "R"]
    read: Collection[int]
    short: Tensor | None = field(default=None, init=False)
    ran: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        rows = patch_rows(self.model)
        self.packed = rows is not None and rows.packed
        self.layers = list(encoder_layers(self.model))
        self.mergers = mergers_of(self.model)
        config: Any = tower_of(self.model).config
        self.kind = str(config._attn_implementation)
        if not self.packed:
            longest = int(self.kept.sum(-1).max())
            order = (~self.kept).to(torch.uint8).argsort(dim=-1, stable=True)
            self.index_BT = order[:, :longest]
            self.real_BT = self.kept.gather(1, self.index_BT)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While open, one run of the encoder in this thread is over fewer patches."""
        if any(layer.training and getattr(layer, "gradient_checkpointing", False)
               for layer in self.layers):  # fmt: skip
            raise UnsupportedError(
                "Expected no gradient checkpointing, which runs layers twice. Got it switched on "
                "in the vision encoder. Call model.gradient_checkpointing_disable()."
            )
        actions: dict[Point, Action] = {}
        for point, number in patch_points(self.model):
            actions[point] = self._action(point, number)
        with acting(actions):
            yield

    def _action(self, point: Point, number: int | None) -> Callable[..., Any]:
        if number is None:
            return self._masked if point.when is When.BEFORE else self._merged
        if point.when is When.AFTER:
            return lambda _module, _args, output: self._behind(number, output)
        return lambda module, args, kwargs: self._before(number, module, args, kwargs)

    # -- what layers are handed

    def _before(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fewer rows into the first layer, and into each what belongs to them."""
        names = list(inspect.signature(module.forward).parameters)
        given = dict(zip(names, args, strict=False)) | kwargs
        first = names[0]
        if number == 0:
            given[first] = self._taken(given[first])
        elif self.short is not None:
            given[first], self.short = self.short, None
        if self.packed:
            for name in sorted(given.keys() - {first}, key=lambda name: name in _LONGEST):
                given[name] = self._beside(name, given[name], given)
        return (given.pop(first),), given

    def _taken(self, hidden: Tensor) -> Tensor:
        """The rows that stay, of the tower's own. Raises `UnsupportedError` for other rows."""
        want = self.kept.shape
        got = hidden.shape[-2:-1] if self.packed else hidden.shape[:2]
        if self.ran or tuple(got) != tuple(want):
            raise UnsupportedError(
                f"Expected one run of the encoder over {tuple(want)} patches. Got {tuple(got)}. "
                "Pass pictures as the model's processor returns them, or use a method that acts on "
                "'embeds'."
            )
        self.ran = True
        if self.packed:
            return self._cut(hidden, -2)
        index = self.index_BT.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index)

    def _cut(self, rows: Tensor, dim: int) -> Tensor:
        return rows.index_select(dim, self.kept.nonzero()[:, 0].to(rows.device))

    def _beside(self, name: str, value: Any, given: dict[str, Any]) -> Any:
        """An argument of a packed layer, for the rows that stay."""
        if value is None:
            return None
        if name in _ROWS:
            several = isinstance(value, tuple)
            cut = tuple(self._cut(part, -2) for part in (value if several else (value,)))
            return cut if several else cut[0]
        if name == "attention_mask":
            return self._cut(self._cut(value, -1), -2)
        if name in _BOUNDS:
            return self._bounds(value)
        if name in _LONGEST:
            bounds = next(given[one] for one in _BOUNDS if given.get(one) is not None)
            return int(bounds.diff().max())
        return value

    def _bounds(self, bounds: Tensor) -> Tensor:
        """Where windows begin and end; one without any patch left is none."""
        before = torch.cat([self.kept.new_zeros(1, dtype=torch.long), self.kept.cumsum(0)])
        left = before.to(bounds.device)[bounds.long()]
        real = torch.cat([left.new_ones(1, dtype=torch.bool), left.diff() > 0])
        return left[real].to(bounds.dtype)

    def _masked(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Attention over a batch: the tower's own mask of the rows that stay, padding left out."""
        mask, ragged = kwargs.get("attention_mask"), not bool(self.real_BT.all())
        if mask is None and not ragged:
            return None
        if self.kind not in _MASKED:
            raise UnsupportedError(
                f"Expected attention that takes a mask of numbers ({' or '.join(_MASKED)}), for "
                f"crops that keep different numbers of patches. Got '{self.kind}'. Load the model "
                "with attn_implementation='sdpa'."
            )
        hidden = args[0] if args else kwargs["hidden_states"]
        index, real = (part.to(hidden.device) for part in (self.index_BT, self.real_BT))
        least = torch.finfo(hidden.dtype).min
        bias = hidden.new_zeros(real.shape)[:, None, None].masked_fill(~real[:, None, None], least)
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = hidden.new_zeros(mask.shape).masked_fill(~mask, least)
            keys = mask.expand(len(index), -1, -1, -1)
            at = index[:, None, None].expand(-1, *keys.shape[1:3], -1)
            keys = keys.gather(-1, at)
            if keys.shape[-2] > 1:
                keys = keys.gather(-2, index[:, None, :, None].expand(-1, keys.shape[1], -1,
                                                                      keys.shape[-1]))  # fmt: skip
            bias = torch.minimum(bias, keys)
        return args, {**kwargs, "attention_mask": bias}

    # -- what comes back

    def _behind(self, number: int, output: Any) -> Any:
        """What is read of a layer, put back; the next goes on with what is left."""
        if number not in self.read:
            return None
        self.short = output[0] if isinstance(output, tuple) else output
        whole = self._whole(self.short)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def _whole(self, short: Tensor) -> Tensor:
        if self.packed:
            return _put(short, self.kept)
        index = self.index_BT.to(short.device)[..., None].expand_as(short)
        rows = short.masked_fill(~self.real_BT.to(short.device)[..., None], 0)
        whole = short.new_zeros(*self.kept.shape, short.shape[-1])
        return whole.scatter(1, index, rows)

    def _merged(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return _put(output, self.tokens)


def _put(rows: Tensor, kept: Tensor) -> Tensor:
    """(..., N, C) rows at the places that are kept, zeros elsewhere."""
    whole = rows.new_zeros(*rows.shape[:-2], len(kept), rows.shape[-1])
    return whole.index_copy(-2, kept.nonzero()[:, 0].to(rows.device), rows)


def patch_points(model: Any) -> list[tuple[Point, int | None]]:
    """Where such a run acts: the number of the layer, or None for its attention or a merger."""
    rows, mergers = patch_rows(model), mergers_of(model)
    points: list[tuple[Point, int | None]] = []
    for number, layer in enumerate(encoder_layers(model)):
        points.append((Point(layer, When.BEFORE), number))
        attention = attention_in(layer)
        if rows is not None and not rows.packed and attention is not None:
            points.append((Point(attention, When.BEFORE), None))
        if not mergers:
            points.append((Point(layer, When.AFTER), number))
    return [*points, *((Point(module, When.AFTER), None) for module in mergers)]
