"""What a run of the encoder is to leave, and what is left: bookkeeping of the site "encoder".

B crops of all pictures, P patches of the largest crop, S tokens left of the fullest crop, T after
a step, C width, G tokens of the largest crop as the LLM counts them, M patches that make one
(Qwen-VL, InternVL: 4; LLaVA: 1). Where crops differ in size, smaller ones end in places of none.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method


@dataclass(frozen=True)
class Wanted:
    """What a run of the encoder is to leave.

    counts: patches of each crop. there: places at which a crop has a patch. reaches: patches that
    reach the LLM at all; the others go at the first step of their crop. keys: one per crop, seed of
    what is random. groups: the patches that make each token of a crop, -1 where it has no more.
    """

    counts: tuple[int, ...]
    there_BP: Bool[Tensor, "B P"]
    reaches_BP: Bool[Tensor, "B P"]
    keys: tuple[int, ...]
    groups_BGM: Int[Tensor, "B G M"]

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
    def whole(cls, there_BP: Bool[Tensor, "B P"]) -> Left:
        """Every patch a token."""
        place = torch.arange(there_BP.shape[1], device=there_BP.device)
        place = place.expand(there_BP.shape).masked_fill(~there_BP, -1)
        return cls(place, torch.ones(there_BP.shape, device=there_BP.device), place.clone())

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
        self, tokens_BSC: Float[Tensor, "B S C"], groups_BGM: Int[Tensor, "B G M"]
    ) -> Float[Tensor, "B P C"]:
        """Every patch the row of the token that took it in. A patch that is gone gets the mean of
        those left in its group, or zeros if none is left there."""
        (B, P), C = self.owner_BP.shape, tokens_BSC.shape[-1]
        owner_BP = torch.where(self.owner_BP >= 0, self.owner_BP, P)
        rows = self._by_patch(tokens_BSC, empty=0).gather(1, _spread(owner_BP, C))
        G, M = groups_BGM.shape[1:]
        if M == 1:
            return rows
        there = self.alive_of(groups_BGM)[..., None]
        flat = groups_BGM.clamp_min(0).flatten(1)
        left = rows.gather(1, _spread(flat, C)).view(B, G, M, C).masked_fill(~there, 0).float()
        mean = (left.sum(2) / there.sum(2).clamp_min(1)).to(rows.dtype)
        of_patch = groups_BGM.new_zeros(B, P + 1)
        own = torch.arange(G, device=rows.device)[None, :, None].expand(groups_BGM.shape)
        of_patch.scatter_(1, torch.where(groups_BGM >= 0, groups_BGM, P).flatten(1), own.flatten(1))
        mean = mean.gather(1, _spread(of_patch[:, :P], C))
        return rows.where((self.owner_BP >= 0)[..., None], mean)

    def alive_of(self, groups_BGM: Int[Tensor, "B G M"]) -> Bool[Tensor, "B G M"]:
        """Of the patches of each group those at which a token stands."""
        alive = self.alive_BP.gather(1, groups_BGM.clamp_min(0).flatten(1))
        return alive.view(groups_BGM.shape) & (groups_BGM >= 0)

    def kept_BG(self, wanted: Wanted) -> Bool[Tensor, "B G"]:
        """Tokens of the LLM that are kept: as many as the patches left make up (rounded up), those
        of which most patches are left, the earlier on a tie."""
        groups = wanted.groups_BGM
        reach = wanted.reaches_BP.gather(1, groups.clamp_min(0).flatten(1)).view(groups.shape)
        reach = reach & (groups >= 0)
        held_BG = (self.alive_of(groups) & reach).sum(-1)
        M = groups.shape[-1]
        counts_B = ((self.alive_BP & wanted.reaches_BP).sum(-1) + M - 1) // M
        return topk_mask(held_BG.float(), counts_B, reach.all(-1))

    def taken_BG(self, wanted: Wanted) -> Int[Tensor, "B G"]:
        """The token that took each in, -1 where it is gone; of groups of one patch."""
        patch_BG = wanted.groups_BGM[..., 0]
        owner = self.owner_BP.masked_fill(~wanted.reaches_BP, -1).gather(1, patch_BG.clamp_min(0))
        B, last = owner.shape[0], self.owner_BP.shape[1]
        of_patch = patch_BG.new_full((B, last + 1), -1)
        own = torch.arange(patch_BG.shape[1], device=patch_BG.device).expand(patch_BG.shape)
        of_patch.scatter_(1, torch.where(patch_BG >= 0, patch_BG, last), own)
        of_patch[:, last] = -1
        taken = of_patch.gather(1, torch.where(owner >= 0, owner, last))
        return taken.masked_fill(patch_BG < 0, -1)


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
