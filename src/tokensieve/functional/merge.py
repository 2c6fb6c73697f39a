"""Tokens that take others in.

B crops, L tokens, C width, K width of what is compared, N tokens that join, U tokens that others
join. Work and memory beside the result grow with N and U, not with B x L.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from tokensieve.functional.places import own_places, positions
from tokensieve.functional.topk import is_light

_PART = 1024  # tokens moved, or compared with all others, at a time
_LARGE = 2**25  # bytes; below, memory is at hand and a copy cheap


def mean_at(
    tokens_BLC: Float[Tensor, "B L C"],
    target_BL: Int[Tensor, "B L"],
    weight_BL: Float[Tensor, "B L"] | None = None,
    *,
    rest: bool = True,
) -> Float[Tensor, "B L C"]:
    """The weighted mean of the tokens that share a target, written at the target; others unchanged.

    rest: False: where a token is not its own target there may be anything finite, which saves a
        copy of all.
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
    if rest:
        return _written(tokens_BLC, shared.at_U, mean_UC)
    return _only(tokens_BLC, target_BL == own_places(target_BL >= 0), shared.at_U, mean_UC)


def spread_to(
    tokens_BLC: Float[Tensor, "B L C"],
    keys_BLK: Float[Tensor, "B L K"],
    from_BL: Bool[Tensor, "B L"],
    to_BL: Bool[Tensor, "B L"],
    temperature: float,
) -> Float[Tensor, "B L C"]:
    """Tokens of `to` with those of `from` shared among them; elsewhere anything finite.

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
        sums_BUC.baddbmm_(share_BPU.mT, source_BPC)
        mass_BU += share_BPU.sum(1)
    changed_BU = there_BU & from_BL.any(-1, keepdim=True)
    return written_at(tokens_BLC, to_BU, sums_BUC.div_(mass_BU[..., None]), changed_BU, to_BL)


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
    kept_BL: Bool[Tensor, "B L"],
) -> Float[Tensor, "B L C"]:
    """Kept tokens, with others at those places where `changed`; elsewhere anything finite. No place
    may be there twice in a crop."""
    at_N, new_NC = _flat(at_BU, tokens_BLC.shape[1]), new_BUC.flatten(0, 1)
    if not bool(changed_BU.all()):
        changed_N = changed_BU.flatten()
        at_N, new_NC = at_N[changed_N], new_NC[changed_N]
    return _only(tokens_BLC, kept_BL, at_N, new_NC)


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
        if flat_NC.dtype is torch.float32:
            return embedding_bag(
                index_N, flat_NC, self.first_U, mode="sum", per_sample_weights=weight_N
            )
        U, N = len(self.at_U), len(index_N)
        step = max(1, U * _PART // N)  # places of about so many sources
        ends, found = [*self.first_U[::step].tolist(), N], []
        for i, (start, end) in enumerate(pairwise(ends)):
            part_NC = flat_NC.index_select(0, index_N[start:end]).float()
            first_U = self.first_U[i * step : (i + 1) * step] - start
            some_N = None if weight_N is None else weight_N[start:end]
            every_N = torch.arange(end - start, device=index_N.device)
            found.append(
                embedding_bag(every_N, part_NC, first_U, mode="sum", per_sample_weights=some_N)
            )
        return torch.cat(found)


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


def _only(
    tokens_BLC: Float[Tensor, "B L C"],
    kept_BL: Bool[Tensor, "B L"],
    at_U: Int[Tensor, "U"],
    new_UC: Float[Tensor, "U C"],
) -> Float[Tensor, "B L C"]:
    """New tokens at their places and kept ones at the others. Elsewhere the old ones, or of many
    tokens on a CPU zeros, which take neither time nor memory until they are looked at."""
    flat_NC = tokens_BLC.reshape(-1, tokens_BLC.shape[-1])
    if not is_light(flat_NC) or flat_NC.numel() * flat_NC.element_size() < _LARGE:
        return _written(tokens_BLC, at_U, new_UC)
    alone_K = kept_BL.flatten().index_fill(0, at_U, False).nonzero()[:, 0]
    blank = np.zeros(flat_NC.numel() * flat_NC.element_size(), np.uint8)
    out_NC = torch.from_numpy(blank).view(flat_NC.dtype).view(flat_NC.shape)
    out_NC = out_NC.index_copy_(0, alone_K, flat_NC.index_select(0, alone_K))
    return out_NC.index_copy_(0, at_U, new_UC.to(out_NC.dtype)).view(tokens_BLC.shape)


def _written(
    tokens_BLC: Float[Tensor, "B L C"], at_U: Int[Tensor, "U"], new_UC: Float[Tensor, "U C"]
) -> Float[Tensor, "B L C"]:
    out_BLC = tokens_BLC.clone(memory_format=torch.contiguous_format)
    out_BLC.view(-1, out_BLC.shape[-1]).index_copy_(0, at_U, new_UC.to(out_BLC.dtype))
    return out_BLC
