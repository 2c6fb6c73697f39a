"""What the encoder's attention says about each visual token, read while it runs.

B crops as the encoder gets them, H heads, P patches of a crop (with CLS), n crops of a picture, L
tokens of a crop, m patches that make one token.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import ConfigError, NonFiniteError, UnsupportedError
from tokensieve.functional.attention import attention_rows, received_attention
from tokensieve.hf.attention.tap import tapped
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.families.table import Family, family_of
from tokensieve.hf.families.towers import attention_in, encoder_layers, has_cls
from tokensieve.types import Kind, Signal

OF_ENCODERS = (
    Kind.CLS_ATTENTION, Kind.CLS_UNSPLIT, Kind.RECEIVED_ATTENTION, Kind.KEYS, Kind.ALL_KEYS,
)  # fmt: skip
_OF_CLS = (Kind.CLS_ATTENTION, Kind.CLS_UNSPLIT)


class EncoderSignals:
    """Listens to an encoder's attention layers during one run.

    Raises `ConfigError` for a layer the encoder does not have or a kind it cannot say, and
    `UnsupportedError` for an encoder whose attention cannot be read.
    """

    def __init__(self, model: Any, signals: Collection[Signal]) -> None:
        self.model, self.signals = model, tuple(dict.fromkeys(signals))
        self.parts: dict[Signal, list[Tensor]] = {signal: [] for signal in self.signals}
        self.cls = has_cls(model) if self.signals else False
        self.padded = bool(self.signals) and family_of(model).padded
        self.wanted: dict[int, list[Signal]] = {}  # by id of the attention module
        self.modules: list[Any] = []
        layers = list(encoder_layers(model)) if self.signals else list[Any]()
        for signal in self.signals:
            if signal.kind not in OF_ENCODERS or signal.block is None or signal.ahead:
                raise ConfigError(
                    f"Expected a signal of an encoder layer, one of {', '.join(OF_ENCODERS)}. Got "
                    f"{signal}."
                )
            if not 0 <= signal.block < len(layers):
                raise ConfigError(
                    f"Expected an encoder layer from 0 to {len(layers) - 1}. Got {signal.block}. "
                    "Change the method's layer."
                )
            module = attention_in(layers[signal.block])
            self.wanted.setdefault(id(module), []).append(signal)
            self.modules.append(module)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, runs of the encoder are heard."""
        with tapped(dict.fromkeys(self.modules), self._seen):
            yield

    def _seen(
        self, module: Any, query: Tensor, key: Tensor, scaling: float, mask: Tensor | None
    ) -> None:
        query, key = query.detach(), key.detach()
        real_BP = _real(mask, key) if self.padded else None
        for signal in self.wanted[id(module)]:
            found = self._of(signal, query, key, scaling, mask, real_BP)
            if not bool(torch.isfinite(found).all()):
                raise NonFiniteError(
                    f"Expected finite numbers in layer {signal.block} of the vision encoder. Got "
                    "NaN or Inf in its attention. Check the picture and the model's dtype "
                    "(float16 overflows in some encoders; try bfloat16)."
                )
            if real_BP is not None:
                found = found[real_BP][None]
            self.parts[signal].append(found[:, 1:] if self.cls else found)

    def _of(
        self, signal: Signal, query: Tensor, key: Tensor, scaling: float, mask: Tensor | None,
        real_BP: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """(B, P) or (B, P, K) of every patch, CLS and padding among them."""
        kind = signal.kind
        if kind is Kind.KEYS:
            return key.float().mean(1)
        if kind is Kind.ALL_KEYS:
            return key.float().transpose(1, 2).flatten(2)
        if kind is Kind.CLS_UNSPLIT:
            query, key, scaling = _as_one_head(query, key)
        if kind in _OF_CLS and self.cls:
            rows = mask if mask is None or mask.shape[-2] == 1 else mask[..., :1, :]
            return attention_rows(query[:, :, :1], key, scaling, rows)[:, 0]
        if mask is not None and mask.ndim == 2:  # FlashAttention's: of padding
            mask = mask.bool()[:, None, None]
        found_BP = received_attention(query, key, scaling, mask, real_BP)
        if not signal.above:
            return found_BP
        real_BP = torch.ones_like(found_BP).bool() if real_BP is None else real_BP
        from_BP = _much_attended(found_BP, real_BP, signal.above)
        found_BP = received_attention(query, key, scaling, mask, from_BP)
        return found_BP * real_BP.sum(-1, keepdim=True) / from_BP.sum(-1, keepdim=True)

    def by_picture(
        self, family: Family, inputs: Mapping[str, Any], packings: Sequence[Packing]
    ) -> dict[Signal, tuple[Tensor, ...]]:
        """Each signal as (n, L) or (n, L, K) per picture, where several patches make one token as
        their mean. Attention received is divided by the number of a crop's queries.

        Raises `UnsupportedError` where patches and tokens cannot be told to belong together.
        """
        return {
            signal: self._by_picture(signal, family, inputs, packings) for signal in self.signals
        }

    def _by_picture(
        self, signal: Signal, family: Family, inputs: Mapping[str, Any], packings: Sequence[Packing]
    ) -> tuple[Tensor, ...]:
        rows = torch.cat([part.flatten(0, 1) for part in self.parts[signal]])
        sizes = [packing.crops * packing.length for packing in packings]
        merged, rest = divmod(len(rows), sum(sizes))
        if rest or not merged:
            raise UnsupportedError(
                f"Expected whole patches for each of {sum(sizes)} visual tokens. Got {len(rows)} "
                f"patches from {type(self.model).__name__}'s encoder. Use a method that reads no "
                "attention."
            )
        of_token = patches_of_tokens(self.model, family, packings, merged).to(rows.device)
        rows = rows[of_token].mean(1)
        if family.order is not None:
            rows = family.order(self.model, inputs, rows)
        parts = []
        for part, packing in zip(torch.split(rows, sizes), packings, strict=True):
            crops = part.view(packing.crops, packing.length, *part.shape[1:])
            summed = signal.kind is Kind.RECEIVED_ATTENTION or (
                signal.kind in _OF_CLS and not self.cls
            )
            parts.append(crops / (packing.length * merged + self.cls) if summed else crops)
        return tuple(parts)


def _real(mask: Tensor | None, key: Tensor) -> Bool[Tensor, "B P"] | None:
    """Patches that any other sees, by the mask of an attention layer: all but padding."""
    if mask is None:
        return None
    seen = mask if mask.dtype == torch.bool else mask >= 0
    if mask.ndim == 2:
        return mask.bool()
    return seen.any(1).any(1).expand(len(key), -1)


def _as_one_head(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, float]:
    """(B, 1, N, H * d) queries and keys, and the scaling for their width."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    query, key = (part.transpose(1, 2).flatten(2)[:, None] for part in (query, key))
    return query, key, query.shape[-1] ** -0.5


def _much_attended(
    found_BP: Tensor, real_BP: Bool[Tensor, "B P"], above: float
) -> Bool[Tensor, "B P"]:
    """Real patches that receive more than so many times the mean, or most of all."""
    found_BP = found_BP.masked_fill(~real_BP, 0)
    mean_B1 = found_BP.sum(-1, keepdim=True) / real_BP.sum(-1, keepdim=True).clamp_min(1)
    most_B1 = found_BP.amax(-1, keepdim=True)
    return real_BP & ((found_BP > above * mean_B1) | (found_BP == most_B1))


def patches_of_tokens(
    model: Any, family: Family, packings: Sequence[Packing], merged: int
) -> Int[Tensor, "T m"]:
    """The patches that make each token, all crops one after another."""
    total = sum(packing.crops * packing.length for packing in packings)
    if family.patches is not None:
        of_crop = family.patches(model)
        first = torch.arange(total // len(of_crop))[:, None, None] * of_crop.numel()
        return (first + of_crop).flatten(0, 1)
    if merged == 1 or family.merged or family.adjacent:  # they follow each other
        return torch.arange(total * merged).view(total, merged)
    square = math.isqrt(merged) ** 2 == merged
    if family.cells and square and all(packing.grid for packing in packings):
        return cells_of(packings, merged)
    base, lengths = model.base_model, {packing.length for packing in packings}
    side = round((max(lengths) * merged) ** 0.5)
    if not hasattr(base, "pixel_shuffle") or len(lengths) > 1 or side**2 != max(lengths) * merged:
        raise UnsupportedError(
            f"Expected a model of which tokensieve knows how {merged} patches make a token. Got "
            f"{type(model).__name__}. Use a method that reads no attention."
        )
    numbers = torch.arange(side**2, dtype=torch.float32).view(1, side, side, 1)
    of_crop = base.pixel_shuffle(numbers, scale_factor=merged**-0.5).reshape(-1, merged).long()
    crops = total // max(lengths)
    first = torch.arange(crops)[:, None, None] * side**2
    return torch.as_tensor((first + of_crop).flatten(0, 1))


def cells_of(packings: Sequence[Packing], merged: int) -> Int[Tensor, "T m"]:
    """The patches that make each token, where they are a square of `merged` neighbours: crops one
    after another, their patches row by row."""
    side, done, parts = math.isqrt(merged), 0, list[Tensor]()
    for packing in packings:
        h, w = packing.grid or (0, 0)
        numbers = torch.arange(h * w * merged).view(h, side, w, side)
        of_crop = numbers.transpose(1, 2).reshape(h * w, merged)
        for _ in range(packing.crops):
            parts.append(of_crop + done)
            done += h * w * merged
    return torch.cat(parts)
