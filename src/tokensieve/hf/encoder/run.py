"""One run of an encoder on the tokens that are left in it: what its layers are handed, and what is
put back where it is read.

B crops of all pictures, P patches of a crop, S tokens left of the fullest crop, C width, K rows
left of all crops.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import UnsupportedError
from tokensieve.hf.encoder.left import Left, Wanted
from tokensieve.hf.encoder.rows import BOUNDS, PackedRows, mask_of_rows, require_masked
from tokensieve.hf.families.towers import (
    attention_in,
    encoder_layers,
    has_cls,
    mergers_of,
    patch_rows,
    tower_of,
)
from tokensieve.hf.runtime.devices import moved
from tokensieve.hf.runtime.hooks import Point, When


class ShortRun:
    """Hooks on the layers of the tower of `model`, of which the VLM reads those in `read`.

    In the run `UnsupportedError` is raised for a tower that hands on other rows than it is known
    for, and for attention that takes no mask of numbers where one is needed.
    """

    def __init__(self, model: Any, wanted: Wanted, read: Collection[int]) -> None:
        self.wanted, self.block = wanted, max(read)
        self.layers = list(encoder_layers(model))
        self.attention = [attention_in(layer) for layer in self.layers]
        self.mergers = mergers_of(model)
        self.read = () if self.mergers else tuple(read)
        rows = patch_rows(model)
        self.packed = rows is not None and rows.packed
        self.windowed = rows is not None and rows.windowed
        self.cls = int(has_cls(model))
        config: Any = tower_of(model).config
        self.kind = str(config._attn_implementation)
        self.left = Left.whole(wanted.there_BP)
        self.given: dict[str, Any] = {}  # to the layer at work, beside hidden states
        self.bounds: list[Tensor] = []  # of its windows, as the tower has them
        self.looked: list[Tensor] | None = None  # the windows of a look ahead
        self.looking = False
        self.bias: Tensor | None = None  # (B, S) added to attention logits
        self.at: dict[int, int] = {}  # of the packed rows, how many an attention module has seen
        self.short: Tensor | None = None  # what the layers behind one that is read go on with
        self.ran = self.put_back = self.stepped = False

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What is left into a layer, and of what it is handed beside what belongs to that."""
        if self.looking:
            return None
        given, first = named(module, args, kwargs)
        if self.short is not None:
            given[first], self.short = self.short, None
        self._check_ahead([given[name] for name in BOUNDS if given.get(name) is not None])
        given = self._beside(given, first)
        hidden = given.pop(first)
        self.given = given
        return (hidden,), given

    def _beside(self, given: dict[str, Any], first: str) -> dict[str, Any]:
        """Arguments of a layer, of what is left."""
        if not self.packed or not self.stepped:
            return dict(given)
        return PackedRows(self.left.alive_BP[self.wanted.there_BP]).beside(given, first)

    def _check_ahead(self, bounds: list[Tensor]) -> None:
        """Raise `UnsupportedError` where a look ahead was through windows that are not these."""
        looked, self.looked, self.bounds = self.looked, None, bounds
        if looked and not all(torch.equal(a, b) for a, b in zip(looked, bounds, strict=True)):
            raise UnsupportedError(
                "Expected layers that attend in the same windows, for a method that looks one "
                "ahead. Got others in the next. Use a method that reads the layer just run."
            )

    def _attend(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """In a batch padding is not attended to, merged tokens as often as they stand for
        patches; the tower's own mask is that of what is left."""
        own = kwargs.get("attention_mask")
        if self.packed or not self.stepped or (own is None and self.bias is None):
            return None
        self._require_masked()
        hidden = args[0] if args else kwargs["hidden_states"]
        left = moved(self.left, hidden.device)
        cls = torch.arange(self.cls, device=hidden.device).expand(len(left.place_BS), -1)
        index = torch.cat([cls, left.place_BS.clamp_min(0) + self.cls], 1)
        bias = left.size_BS.new_zeros(left.size_BS.shape) if self.bias is None else self.bias
        added = torch.nn.functional.pad(bias.to(hidden), (self.cls, 0))
        return args, {**kwargs, "attention_mask": mask_of_rows(own, index, added, hidden.dtype)}

    def _weigh(self, module: nn.Module, key: Tensor) -> Tensor | None:
        """In packed rows, of which this call of the module attends the next few."""
        if self.bias is None:
            return None
        bias_K = self.bias[self.left.real_BS]
        at, count = self.at.get(id(module), 0), key.shape[-2]
        self.at[id(module)] = (at + count) % len(bias_K)
        return bias_K[None, None, None, at : at + count]

    def _require_masked(self) -> None:
        why = "merged or different numbers of tokens inside the encoder"
        require_masked(self.kind, why, ", or use proportional=False")

    def _merge(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rows put back in front of a module that makes tokens of neighbouring patches."""
        self.put_back = True
        return (self._whole(args[0]), *args[1:]), kwargs

    def _check_run(self, hidden: Tensor) -> None:
        there = self.wanted.there_BP
        want = [int(there.sum())] if self.packed else [len(there), there.shape[1] + self.cls]
        got = list(hidden.shape[-2:-1] if self.packed else hidden.shape[:2])
        if self.ran or got != want:
            raise UnsupportedError(
                f"Expected one run of the encoder over {want} patches of {len(there)} crops. Got "
                f"{got}. Pass pictures as the model's processor returns them."
            )
        self.ran = True

    def _crops(self, hidden: Tensor) -> Tensor:
        """(B, S, C) of what a layer gives, zeros in padding of packed rows."""
        if not self.packed:
            return hidden[:, self.cls :]
        real = self.left.real_BS
        out = hidden.new_zeros(*real.shape, hidden.shape[-1])
        out[real] = hidden.reshape(-1, hidden.shape[-1])
        return out

    def _rows(self, tokens_BSC: Tensor, hidden: Tensor) -> Tensor:
        """`_crops` the other way round; `hidden` as the tower has it, of any length."""
        if not self.packed:
            return torch.cat([hidden[:, : self.cls], tokens_BSC], dim=1)
        rows = tokens_BSC[self.left.real_BS]
        return rows.view(*hidden.shape[:-2], -1, hidden.shape[-1])

    def _whole(self, hidden: Tensor) -> Tensor:
        """Every patch the row of the token that took it in, as the tower has them."""
        if not self.stepped:
            return hidden
        left, wanted = moved(self.left, hidden.device), moved(self.wanted, hidden.device)
        rows = left.spread(self._crops(hidden), wanted.groups_BGM)
        if self.packed:
            return rows[wanted.there_BP].view(*hidden.shape[:-2], -1, hidden.shape[-1])
        return torch.cat([hidden[:, : self.cls], rows], dim=1)


def step_points(model: Any) -> list[Point]:
    """Where such a run acts."""
    points = [Point(merger, When.BEFORE) for merger in mergers_of(model)]
    for layer in encoder_layers(model):
        points += [Point(layer, When.BEFORE), Point(layer, When.AFTER)]
        if (attention := attention_in(layer)) is not None:
            points.append(Point(attention, When.BEFORE))
    return points


def named(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """A layer's arguments by their names, and the name of the hidden states."""
    names = list(inspect.signature(module.forward).parameters)
    return dict(zip(names, args, strict=False)) | kwargs, names[0]
