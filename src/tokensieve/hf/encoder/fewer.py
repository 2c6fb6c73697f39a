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
from tokensieve.hf.encoder.rows import PackedRows, mask_of_rows, require_masked
from tokensieve.hf.families.towers import (
    attention_in,
    encoder_layers,
    mergers_of,
    patch_rows,
    tower_of,
)
from tokensieve.hf.runtime.hooks import Action, Point, When, acting


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
            given = PackedRows(self.kept).beside(given, first)
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
            return PackedRows(self.kept).cut(hidden, -2)
        index = self.index_BT.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index)

    def _masked(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Attention over a batch: the tower's own mask of the rows that stay, padding left out."""
        mask, ragged = kwargs.get("attention_mask"), not bool(self.real_BT.all())
        if mask is None and not ragged:
            return None
        require_masked(self.kind, "crops that keep different numbers of patches")
        hidden = args[0] if args else kwargs["hidden_states"]
        index, real = (part.to(hidden.device) for part in (self.index_BT, self.real_BT))
        least = torch.finfo(hidden.dtype).min
        added = hidden.new_zeros(real.shape).masked_fill(~real, least)
        return args, {
            **kwargs, "attention_mask": mask_of_rows(mask, index, added, hidden.dtype)
        }  # fmt: skip

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
