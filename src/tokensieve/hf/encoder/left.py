"""What a run of the encoder is to leave, and what is left: bookkeeping of the site "encoder".

B crops of all pictures, P patches of a crop, S tokens left of the fullest crop, T after a step, C
width, G tokens of a crop as the LLM counts them, M patches that make one (InternVL: 4, else 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method


@dataclass(frozen=True)
class Wanted:
    """What a run of the encoder is to leave.

    counts: patches of each crop. reaches: patches that reach the LLM at all; the others go at the
    first step of their crop. keys: one per crop, seed of what is random. groups: the patches that
    make each token of a crop.
    """

    counts: tuple[int, ...]
    reaches_BP: Bool[Tensor, "B P"]
    keys: tuple[int, ...]
    groups_GM: Int[Tensor, "G M"]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Patches of each crop that reach the LLM."""
        return tuple(self.reaches_BP.sum(-1).tolist())

    @property
    def shrinks(self) -> tuple[bool, ...]:
        """Whether a crop loses any."""
        return tuple(0 < c < n for c, n in zip(self.counts, self.lengths, strict=True))


@dataclass(frozen=True)
class Left:
    """What is left of B crops.

    place: the patch each token stands at, -1 for padding. size: patches it stands for. owner: the
    patch at which the token stands that took each patch in; -1 where it is gone.
    """

    place_BS: Int[Tensor, "B S"]
    size_BS: Float[Tensor, "B S"]
    owner_BP: Int[Tensor, "B P"]

    @classmethod
    def whole(cls, crops: int, patches: int, device: Any) -> Left:
        """Every patch a token."""
        place = torch.arange(patches, device=device).repeat(crops, 1)
        return cls(place, torch.ones(crops, patches, device=device), place.clone())

    @property
    def real_BS(self) -> Bool[Tensor, "B S"]:
        """False in padding."""
        return self.place_BS >= 0

    @property
    def alive_BP(self) -> Bool[Tensor, "B P"]:
        """Patches at which a token stands."""
        return self.owner_BP == torch.arange(self.owner_BP.shape[1], device=self.owner_BP.device)

    def reduced(
        self,
        kept_BS: Bool[Tensor, "B S"],
        assign_BS: Int[Tensor, "B S"],
        order_BT: Int[Tensor, "B T"],
    ) -> Left:
        """After a step: what is kept, what each token joined, and the tokens in their new order."""
        target_BS = self.place_BS.gather(1, assign_BS.clamp_min(0)).masked_fill(assign_BS < 0, -1)
        given_BS = self.size_BS.masked_fill(~self.real_BS | (assign_BS < 0), 0)
        size_BS = torch.zeros_like(given_BS).scatter_add_(1, assign_BS.clamp_min(0), given_BS)
        real_BT = kept_BS.gather(1, order_BT)
        owner = self._by_patch(target_BS[..., None], empty=-1).gather(1, _last(self.owner_BP))
        return Left(
            self.place_BS.gather(1, order_BT).masked_fill(~real_BT, -1),
            size_BS.gather(1, order_BT).masked_fill(~real_BT, 1),
            owner[..., 0],
        )

    def _by_patch(self, values_BSC: Tensor, empty: int) -> Tensor:
        """(B, P + 1, C) a value for each patch at which a token stands; the last place is none."""
        B, P = self.owner_BP.shape
        out = values_BSC.new_full((B, P + 1, values_BSC.shape[-1]), empty)
        place = _spread(torch.where(self.real_BS, self.place_BS, P), values_BSC.shape[-1])
        out.scatter_(1, place, values_BSC)
        out[:, P] = empty  # where padding was written
        return out

    def spread(
        self, tokens_BSC: Float[Tensor, "B S C"], groups_GM: Int[Tensor, "G M"]
    ) -> Float[Tensor, "B P C"]:
        """Every patch the row of the token that took it in. A patch that is gone gets the mean of
        those left in its group, or zeros if none is left there."""
        P, C = self.owner_BP.shape[1], tokens_BSC.shape[-1]
        owner_BP = torch.where(self.owner_BP >= 0, self.owner_BP, P)
        rows = self._by_patch(tokens_BSC, empty=0).gather(1, _spread(owner_BP, C))
        if groups_GM.shape[1] == 1:
            return rows
        there = (self.alive_BP[:, groups_GM])[..., None]
        left = rows[:, groups_GM].masked_fill(~there, 0).float().sum(2)
        mean = (left / there.sum(2).clamp_min(1)).to(rows.dtype)
        of_patch = torch.empty(P, dtype=torch.long, device=rows.device)
        of_patch[groups_GM] = torch.arange(len(groups_GM), device=rows.device)[:, None]
        return rows.where((self.owner_BP >= 0)[..., None], mean[:, of_patch])

    def kept_BG(
        self, groups_GM: Int[Tensor, "G M"], reaches_BP: Bool[Tensor, "B P"]
    ) -> Bool[Tensor, "B G"]:
        """Tokens of the LLM that are kept: as many as the patches left make up (rounded up), those
        of which most patches are left, the earlier on a tie."""
        alive_BP = self.alive_BP & reaches_BP
        held_BG = alive_BP[:, groups_GM].sum(-1)
        M = groups_GM.shape[1]
        counts_B = (alive_BP.sum(-1) + M - 1) // M
        return topk_mask(held_BG.float(), counts_B, reaches_BP[:, groups_GM].all(-1))


def schedule_of(method: Method, length: int, keep: int, blocks: int) -> list[int]:
    """The method's schedule, checked. Raises `ConfigError`."""
    counts = method.block_counts(length, keep, blocks)
    if len(counts) != blocks or counts[-1] != keep or keep < 1:
        raise ConfigError(
            f"Expected a schedule of {blocks} counts that ends with {keep}. Got {counts} from "
            f"{type(method).__name__}."
        )
    if any(fewer > more for more, fewer in pairwise([length, *counts])):
        raise ConfigError(
            f"Expected a schedule that never grows from {length}. Got {counts} from "
            f"{type(method).__name__}."
        )
    return counts


def _last(owner_BP: Tensor) -> Tensor:
    """(B, P, 1) indices into P + 1 places, the last for what is gone."""
    return torch.where(owner_BP >= 0, owner_BP, owner_BP.shape[1])[..., None]


def _spread(index: Tensor, width: int) -> Tensor:
    return index[..., None].expand(*index.shape, width)
