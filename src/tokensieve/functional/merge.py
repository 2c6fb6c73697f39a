"""Tokens that take others in.

B crops, L tokens, C width, K width of what is compared, N tokens that join, U tokens that others
join. Work and memory beside the result grow with N and U, not with B x L.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from tokensieve.functional.places import positions

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
    sums_UC = shared.sums(flat_C, None if weight_BL is None else mass)
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
    (from_BN, given_BN), (to_BU, there_BU) = positions(from_BL), positions(to_BL)
    if not from_BN.numel() or not to_BU.numel():
        return tokens_BLC
    ragged = not bool(given_BN.all() & there_BU.all())
    to_BKU = (normalize(rows(keys_BLK, to_BU).float(), dim=-1) / temperature).mT
    sums_BUC = rows(tokens_BLC, to_BU).float()
    mass_BU = torch.ones_like(sums_BUC[..., 0])
    for start in range(0, from_BN.shape[1], _PART):
        part_BP = from_BN[:, start : start + _PART]
        share_BPU = normalize(rows(keys_BLK, part_BP).float(), dim=-1) @ to_BKU
        source_BPC = rows(tokens_BLC, part_BP).float()
        if ragged:
            nobody_BP1 = ~given_BN[:, start : start + _PART, None]
            share_BPU = share_BPU.masked_fill(~there_BU[:, None], -torch.inf).softmax(-1)
            share_BPU = share_BPU.masked_fill(nobody_BP1 | ~there_BU[:, None], 0)
            source_BPC = source_BPC.masked_fill(nobody_BP1, 0)  # may hold NaN
        else:
            share_BPU = share_BPU.softmax(-1)
        sums_BUC = torch.baddbmm(sums_BUC, share_BPU.mT, source_BPC)
        mass_BU = mass_BU + share_BPU.sum(1)
    changed_BU = there_BU & from_BL.any(-1, keepdim=True)
    return written_at(tokens_BLC, to_BU, sums_BUC / mass_BU[..., None], changed_BU)


def sum_of(
    tokens_BLC: Float[Tensor, "B L C"],
    weight_BL: Float[Tensor, "B L"],
    valid_BL: Bool[Tensor, "B L"],
) -> Float[Tensor, "B C"]:
    """The weighted sum of a crop's real tokens. weight: 0 for those that have no part in it."""
    source_BLC = tokens_BLC.float()
    if not bool(valid_BL.all()):
        source_BLC = source_BLC.masked_fill(~valid_BL[..., None], 0)  # padding may hold NaN
    return (weight_BL.float().masked_fill(~valid_BL, 0)[:, None] @ source_BLC)[:, 0]


def written_at(
    tokens_BLC: Float[Tensor, "B L C"],
    at_BU: Int[Tensor, "B U"],
    new_BUC: Float[Tensor, "B U C"],
    changed_BU: Bool[Tensor, "B U"],
) -> Float[Tensor, "B L C"]:
    """A copy with other tokens at those places, where `changed`; no place twice in a crop."""
    new_BUC = new_BUC.to(tokens_BLC.dtype)
    if not bool(changed_BU.all()):
        new_BUC = new_BUC.where(changed_BU[..., None], rows(tokens_BLC, at_BU))
    return _written(tokens_BLC, _flat(at_BU, tokens_BLC.shape[1]), new_BUC.flatten(0, 1))


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
    size_U, first_U = shared.size_U, shared.first_U
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
    size_U: how many share each.
    """

    at_U: Int[Tensor, "U"]
    source_N: Int[Tensor, "N"]
    size_U: Int[Tensor, "U"]

    @classmethod
    def of(cls, target_BL: Int[Tensor, "B L"], wanted_BL: Bool[Tensor, "B L"]) -> _Shared:
        into = _flat(target_BL)
        taken = (target_BL >= 0).flatten()
        size = torch.zeros_like(into).index_add_(0, into, taken.long())
        shared = (size > 1) & wanted_BL.flatten()
        source_N = (shared[into] & taken).nonzero()[:, 0]
        source_N = source_N[into[source_N].argsort(stable=True)]
        at_U = shared.nonzero()[:, 0]
        return cls(at_U, source_N, size[at_U])

    @property
    def first_U(self) -> Int[Tensor, "U"]:
        """Where the sources of each place begin."""
        return self.size_U.cumsum(0) - self.size_U

    def sums(self, flat_NC: Tensor, weight_N: Tensor | None) -> Float[Tensor, "U C"]:
        """The weighted sum of each place's sources, in float32; without gathering them where they
        are that already."""
        if not len(self.at_U):
            return flat_NC.new_zeros(0, flat_NC.shape[1], dtype=torch.float32)
        index_N, weight_N = self.source_N, None if weight_N is None else weight_N[self.source_N]
        if flat_NC.dtype is not torch.float32:
            flat_NC = flat_NC.index_select(0, index_N).float()
            index_N = torch.arange(len(index_N), device=index_N.device)
        return embedding_bag(
            index_N, flat_NC, self.first_U, mode="sum", per_sample_weights=weight_N
        )


def rows(values_BLC: Tensor, index_BN: Int[Tensor, "B N"]) -> Tensor:
    """Those rows of each crop."""
    flat_C = values_BLC.reshape(-1, values_BLC.shape[-1])  # four times as fast as values[b, index]
    taken_C = flat_C.index_select(0, _flat(index_BN, values_BLC.shape[1]))
    return taken_C.view(*index_BN.shape, -1)


def _flat(target_BL: Int[Tensor, "B T"], length: int | None = None) -> Int[Tensor, "N"]:
    """Targets counted over all crops of that length (T); of those of -1 the crop's first place."""
    L = target_BL.shape[1] if length is None else length
    first_B1 = torch.arange(len(target_BL), device=target_BL.device)[:, None] * L
    return (target_BL.clamp_min(0) + first_B1).flatten()


def _written(
    tokens_BLC: Float[Tensor, "B L C"], at_U: Int[Tensor, "U"], new_UC: Float[Tensor, "U C"]
) -> Float[Tensor, "B L C"]:
    out_BLC = tokens_BLC.clone(memory_format=torch.contiguous_format)
    out_BLC.view(-1, out_BLC.shape[-1]).index_copy_(0, at_U, new_UC.to(out_BLC.dtype))
    return out_BLC
