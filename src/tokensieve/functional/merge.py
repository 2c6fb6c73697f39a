"""Tokens that take others in.

B crops, L tokens, C width, K width of what is compared, N tokens that join, U tokens that others
join. Work and memory beside the result grow with N and U, not with B x L.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

_PART = 1024  # tokens moved, or compared with all others, at a time


def mean_at(
    tokens_BLC: Float[Tensor, "B L C"],
    target_BL: Int[Tensor, "B L"],
    weight_BL: Float[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L C"]:
    """The weighted mean of the tokens that share a target, written at the target; others unchanged.

    Targets of -1 take part in nothing. A token that is its own only source stays bit for bit, and
    so does one whose sources weigh nothing. weight: not negative; None: all alike.
    """
    flat_C = tokens_BLC.flatten(0, 1)
    mass = torch.ones(target_BL.shape, device=target_BL.device) if weight_BL is None else weight_BL
    mass = mass.float().masked_fill(target_BL < 0, 0).flatten()  # padding may hold NaN
    into = _flat(target_BL)
    total = torch.zeros_like(mass).index_add_(0, into, mass)
    shared = _Shared.of(target_BL, (total > 0).view_as(target_BL))
    sums_UC = torch.zeros(len(shared.at_U), flat_C.shape[1], device=mass.device)
    for source, slot in shared.parts():
        part_C = flat_C[source].float()
        sums_UC.index_add_(0, slot, part_C if weight_BL is None else part_C * mass[source, None])
    mean_UC = sums_UC.div_(total[shared.at_U, None])
    return _written(tokens_BLC, shared.at_U, mean_UC)


def spread_to(
    tokens_BLC: Float[Tensor, "B L C"],
    keys_BLK: Float[Tensor, "B L K"],
    from_BL: Bool[Tensor, "B L"],
    to_BL: Bool[Tensor, "B L"],
    temperature: float,
) -> Float[Tensor, "B L C"]:
    """Tokens of `to` with those of `from` shared among them; others unchanged.

    Each of `from` is shared by a softmax, over `to`, of the cosine of keys over the temperature. A
    new token is the mean of itself, with weight 1, and its shares. Tokens of a crop without any in
    `from` stay bit for bit.
    """
    keys_BLK = normalize(keys_BLK.float().masked_fill(~(from_BL | to_BL)[..., None], 0), dim=-1)
    source_BLC = tokens_BLC.float().masked_fill(~from_BL[..., None], 0)
    sums_BLC, mass_BL = torch.zeros_like(source_BLC), torch.zeros_like(keys_BLK[..., 0])
    for start in range(0, from_BL.shape[1], _PART):
        part = slice(start, start + _PART)
        cosine_BPL = keys_BLK[:, part] @ keys_BLK.mT / temperature
        share_BPL = cosine_BPL.masked_fill(~to_BL[:, None], -torch.inf).softmax(-1)
        share_BPL = share_BPL.masked_fill(~(from_BL[:, part, None] & to_BL[:, None]), 0)
        sums_BLC += share_BPL.mT @ source_BLC[:, part]
        mass_BL += share_BPL.sum(1)
    own_BLC = tokens_BLC.float().masked_fill(~to_BL[..., None], 0)
    new_BLC = ((own_BLC + sums_BLC) / (1 + mass_BL)[..., None]).to(tokens_BLC.dtype)
    changed_BL = to_BL & from_BL.any(-1, keepdim=True)
    return new_BLC.where(changed_BL[..., None], tokens_BLC)


def concat_at(
    tokens_BLC: Float[Tensor, "B L C"], target_BL: Int[Tensor, "B L"]
) -> Float[Tensor, "B L C"]:
    """Tokens that share a target, each giving an equal run of its channels, written at the target.

    Of m tokens in their order the i-th gives channels i C / m up to (i + 1) C / m. Targets of -1
    take part in nothing; a token that is its own only source stays bit for bit.
    """
    flat_C = tokens_BLC.flatten(0, 1)
    C = flat_C.shape[1]
    shared = _Shared.of(target_BL, torch.ones_like(target_BL, dtype=torch.bool))
    size_U = torch.bincount(shared.slot_N, minlength=len(shared.at_U))
    first_U = size_U.cumsum(0) - size_U
    channel_C = torch.arange(C, device=flat_C.device)
    new_UC = flat_C.new_empty(len(shared.at_U), C)
    for start in range(0, len(new_UC), _PART):
        part = slice(start, start + _PART)
        member_UC = first_U[part, None] + channel_C * size_U[part, None] // C
        new_UC[part] = flat_C[shared.source_N[member_UC], channel_C]
    return _written(tokens_BLC, shared.at_U, new_UC)


@dataclass(frozen=True)
class _Shared:
    """Places, counted over all crops, that more than one token has as its target.

    at_U: the places; source_N: the tokens that share one, place after place, in their order;
    slot_N: which of the places.
    """

    at_U: Int[Tensor, "U"]
    source_N: Int[Tensor, "N"]
    slot_N: Int[Tensor, "N"]

    @classmethod
    def of(cls, target_BL: Int[Tensor, "B L"], wanted_BL: Bool[Tensor, "B L"]) -> _Shared:
        into = _flat(target_BL)
        taken = (target_BL >= 0).flatten()
        size = torch.zeros_like(into).index_add_(0, into, taken.long())
        shared = (size > 1) & wanted_BL.flatten()
        source_N = (shared[into] & taken).nonzero()[:, 0]
        source_N = source_N[into[source_N].argsort(stable=True)]
        slot = shared.long().cumsum(0) - 1
        return cls(shared.nonzero()[:, 0], source_N, slot[into[source_N]])

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Sources and their slots, some at a time."""
        return zip(torch.split(self.source_N, _PART), torch.split(self.slot_N, _PART), strict=True)


def _flat(target_BL: Int[Tensor, "B L"]) -> Int[Tensor, "N"]:
    """Targets counted over all crops; of those of -1 the crop's first place."""
    B, L = target_BL.shape
    first_B1 = torch.arange(B, device=target_BL.device)[:, None] * L
    return (target_BL.clamp_min(0) + first_B1).flatten()


def _written(
    tokens_BLC: Float[Tensor, "B L C"], at_U: Int[Tensor, "U"], new_UC: Float[Tensor, "U C"]
) -> Float[Tensor, "B L C"]:
    out_BLC = tokens_BLC.clone(memory_format=torch.contiguous_format)
    out_BLC.view(-1, out_BLC.shape[-1])[at_U] = new_UC.to(out_BLC.dtype)
    return out_BLC
