"""What layers of a tower are handed beside hidden states, for those of its rows that stay.

N rows of all pictures packed, K of those that stay; B crops of a batch, S rows of a crop as the
tower has them, T of those that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError

ROWS = ("position_embeddings", "rotary_pos_emb")  # arguments of layers: one row per patch
BOUNDS = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")  # where windows begin and end
LONGEST = ("max_seqlen", "max_length_q", "max_length_k")
MASKED = ("sdpa", "eager")  # attention that takes a mask of numbers


@dataclass(frozen=True)
class PackedRows:
    """Rows of all pictures, one after another: positions, windows and masks of those that stay.

    A window counts the places of the whole picture: it holds what stays of what it held.
    """

    kept_N: Bool[Tensor, "N"]

    def beside(self, given: dict[str, Any], first: str) -> dict[str, Any]:
        """Arguments of a layer; `first` is the name of the hidden states, left as they are."""
        out = dict(given)
        for name in sorted(given.keys() - {first}, key=lambda name: name in LONGEST):
            out[name] = self._of(name, given[name], out)
        return out

    def cut(self, rows: Tensor, dim: int) -> Tensor:
        """(..., K, ...) of the rows that stay."""
        return rows.index_select(dim, self.kept_N.nonzero()[:, 0].to(rows.device))

    def bounds(self, bounds: Tensor) -> Tensor:
        """Where windows begin and end; one without any patch left is none."""
        before = torch.cat([self.kept_N.new_zeros(1, dtype=torch.long), self.kept_N.cumsum(0)])
        left = before.to(bounds.device)[bounds.long()]
        real = torch.cat([left.new_ones(1, dtype=torch.bool), left.diff() > 0])
        return left[real].to(bounds.dtype)

    def _of(self, name: str, value: Any, given: dict[str, Any]) -> Any:
        if value is None:
            return None
        if name in ROWS:
            several = isinstance(value, tuple)
            cut = tuple(self.cut(part, -2) for part in (value if several else (value,)))
            return cut if several else cut[0]
        if name == "attention_mask":
            return self.cut(self.cut(value, -1), -2)
        if name in BOUNDS:
            return self.bounds(value)
        if name in LONGEST:
            bounds = next(given[one] for one in BOUNDS if given.get(one) is not None)
            return int(bounds.diff().max())
        return value


def require_masked(kind: str, why: str, or_else: str = "") -> None:
    """Raise `UnsupportedError` for attention of a `kind` that takes no mask of numbers."""
    if kind not in MASKED:
        raise UnsupportedError(
            f"Expected attention that takes a mask of numbers ({' or '.join(MASKED)}), for {why}. "
            f"Got '{kind}'. Load the model with attn_implementation='sdpa'{or_else}."
        )


def mask_of_rows(
    own: Tensor | None, index_BT: Int[Tensor, "B T"], added_BT: Tensor, dtype: torch.dtype
) -> Tensor:
    """(B, 1 or H, 1 or T, T) to be added to the attention logits of a batch of crops.

    own: the tower's own mask of all S. index: which of those rows stay. added: to the logits of
    each as a key, the least number there is where it is padding.
    """
    bias = added_BT[:, None, None].to(dtype)
    if own is None:
        return bias
    if own.dtype == torch.bool:
        zeros = torch.zeros(own.shape, dtype=dtype, device=own.device)
        own = zeros.masked_fill(~own, torch.finfo(dtype).min)
    keys = own.expand(len(index_BT), -1, -1, -1)
    keys = keys.gather(-1, index_BT[:, None, None].expand(-1, *keys.shape[1:3], -1))
    if keys.shape[-2] > 1:
        at = index_BT[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
        keys = keys.gather(-2, at)
    return torch.where(keys < 0, torch.minimum(bias, keys), bias)
