"""What attention layers of an encoder at work say of the tokens that are left in it.

B crops of all pictures, S tokens left of the fullest crop, H heads, d width of a head; n rows of
one attention call of a tower that packs all pictures in one row: a window's, a picture's, or all.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.functional.attention import attention_heads, attention_rows, received_attention
from tokensieve.hf.encoder.left import Left
from tokensieve.types import Kind

_RECEIVED = (Kind.CLS_ATTENTION, Kind.RECEIVED_ATTENTION)  # without a CLS they are one


class Heard:
    """Signals since the last step, by kind and whether of a layer ahead.

    Where attention is in windows a token receives from its window, as a share of its whole crop.
    Raises `ConfigError` for a kind no encoder layer tells.
    """

    def __init__(self, cls: int, packed: bool) -> None:
        self.cls, self.packed = cls, packed
        self.parts: dict[tuple[Kind, bool], list[Tensor]] = {}

    def add(
        self, kinds: Iterable[Kind], ahead: bool, left: Left,
        query: Tensor, key: Tensor, scaling: float, mask: Tensor | None,
    ) -> None:  # fmt: skip
        """What one call of an attention module is about to attend."""
        query, key = query.detach(), key.detach()
        signal = self._of_rows if self.packed else self._of_batch
        for kind in kinds:
            found = signal(kind, left, query, key, scaling, mask)
            self.parts.setdefault((kind, ahead), []).append(found)

    def all_rows(self, ahead: bool, left: Left) -> bool:
        """Whether every row has been told of."""
        told = next((part for (_, which), part in self.parts.items() if which == ahead), [])
        return not self.packed or sum(map(len, told)) == int(left.real_BS.sum())

    def of(self, kind: Kind, ahead: bool, left: Left) -> Tensor:
        """(B, S), (B, S, d) or (B, S, S, H) what was told last."""
        parts = self.parts[kind, ahead]
        if not self.packed:
            return parts[-1]
        real_BS = left.real_BS.to(parts[0].device)
        if kind is Kind.HEAD_MAPS:
            return _maps(parts, real_BS)
        rows = torch.cat(parts)
        out = rows.new_zeros(*real_BS.shape, *rows.shape[1:])
        out[real_BS] = rows
        return out / real_BS.sum(-1, keepdim=True) if kind in _RECEIVED else out

    def _of_rows(
        self, kind: Kind, _left: Left, query: Tensor, key: Tensor, scaling: float,
        mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """(n,), (n, d) or (n, n, H) of one window, or of a row of pictures."""
        if kind is Kind.KEYS:
            return key[0].float().mean(0)
        if kind is Kind.HEAD_MAPS:
            return attention_heads(query, key, scaling, mask)[0].permute(1, 2, 0)
        if kind not in _RECEIVED:
            raise _unknown(kind)
        return received_attention(query, key, scaling, mask)[0]

    def _of_batch(
        self, kind: Kind, left: Left, query: Tensor, key: Tensor, scaling: float,
        mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        cls = self.cls
        if kind is Kind.KEYS:
            return key[:, :, cls:].float().mean(1)
        if kind is Kind.CLS_ATTENTION and cls:
            return attention_rows(query[:, :, :1], key, scaling, mask)[:, 0, 1:]
        if kind is Kind.HEAD_MAPS:
            maps_BHSS = attention_heads(query[:, :, cls:], key, scaling, mask)[..., cls:]
            return maps_BHSS.permute(0, 2, 3, 1)
        if kind not in _RECEIVED:
            raise _unknown(kind)
        real_BS = left.real_BS.to(key.device)
        real_BS = torch.cat([real_BS.new_ones(len(real_BS), cls), real_BS], dim=1)
        total_BS = received_attention(query, key, scaling, mask, real_BS)
        return (total_BS / real_BS.sum(-1, keepdim=True))[:, cls:]


def _unknown(kind: Kind) -> ConfigError:
    return ConfigError(f"Expected a signal of an encoder layer. Got '{kind}'.")


def _maps(parts: list[Tensor], real_BS: Tensor) -> Tensor:
    """(B, S, S, H) the maps of each crop, zero between windows."""
    B, S = real_BS.shape
    out, start = parts[0].new_zeros(B, S, S, parts[0].shape[-1]), 0
    for b, size in enumerate(real_BS.sum(-1).tolist()):
        at = 0
        for part in parts:
            low, high = max(at, start), min(at + len(part), start + size)
            if low < high:
                own, told = slice(low - start, high - start), slice(low - at, high - at)
                out[b, own, own] = part[told, told]
            at += len(part)
        start += size
    return out
