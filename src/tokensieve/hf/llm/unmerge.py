"""Merged tokens that the LLM's attention sees as all the tokens they stand for, each at its place.

Between attentions there is one row for each token left. Inside attention its query, key and value
stand at every place that joined it, turned there by the rotary positions between that place and its
own, and what all of these places attend to is averaged. So projections, MLP and cache have the size
of what is left, attention that of the whole prompt.

B prompts, E rows of all prompts and beams, S prompt length, T length of it shortened, N places that
are stood for, M of them with what was decoded since, Q queries, K keys, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention.tap import replaced
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.encoder.reduction import ImageReduction
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.families.towers import attention_in
from tokensieve.hf.llm.masks import window_of
from tokensieve.hf.llm.stage import require_growing
from tokensieve.hf.llm.weights import kind_of
from tokensieve.hf.prompt.compaction import Gather
from tokensieve.hf.report import Call
from tokensieve.hf.runtime.compat import cache_at
from tokensieve.hf.runtime.hooks import Point, When, acting

LLMS = ("llama", "mistral", "qwen2", "qwen3")  # positions turn a head's halves, by place alone
_ROPES = ("default", "linear", "llama3", "yarn")  # whose frequencies do not depend on the length


def require_unmerging(model: Any) -> None:
    """Raise `UnsupportedError` for an LLM whose attention cannot be taken apart so."""
    decoder = decoder_of(model)
    config, kind = decoder.config, kind_of(decoder)
    rope = getattr(config, "rope_parameters", None) or {}
    windows = [n for n in range(len(decoder.layers)) if window_of(decoder, n) is not None]
    known = config.model_type in LLMS and rope.get("rope_type", "default") in _ROPES
    if not known or windows:
        raise UnsupportedError(
            f"Expected an LLM of {', '.join(LLMS)} with plain rotary positions and no windows, to "
            f"see merged tokens unmerged. Got '{config.model_type}'. Leave `unmerge` out."
        )
    if kind not in ("sdpa", "eager"):
        raise UnsupportedError(
            "Expected attention that takes any mask (sdpa or eager), to see merged tokens "
            f"unmerged. Got '{kind}'. Call model.set_attn_implementation('sdpa')."
        )


@dataclass
class Unmerged:
    """One prompt's merged tokens at work in the LLM, while it is read and while it is answered.

    places: which places of the prompt are stood for. slot_BN: by which of the T tokens left.
    turn_BN: how many positions behind that token's own each place is. told: what was done.
    """

    decoder: Any
    places: Gather
    slot_BN: Int[Tensor, "B N"]
    turn_BN: Int[Tensor, "B N"]
    length: int  # T
    told: Call
    made: dict[tuple[int, int], _Laid] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: Any, owner_BS: Int[Tensor, "B S"], gather: Gather,
        positions_BS: Int[Tensor, "B S"], told: Call,
    ) -> Unmerged:  # fmt: skip
        """owner: which place each one's token went to, its own if it stayed, -1 if it is gone."""
        require_unmerging(model)
        T = gather.index_BT.shape[1]
        row, column = gather.real_BT.nonzero().unbind(-1)
        slot_BS = torch.zeros_like(owner_BS)
        slot_BS[row, gather.index_BT[row, column]] = column
        places = Gather.of(owner_BS >= 0, left=bool(gather.real_BT[:, -1].all()))
        owner_BN = owner_BS.gather(1, places.index_BT).clamp_min(0)
        at_BS = positions_BS.expand_as(owner_BS)
        turn_BN = at_BS.gather(1, places.index_BT) - at_BS.gather(1, owner_BN)
        turn_BN = turn_BN.masked_fill(~places.real_BT, 0)
        return cls(decoder_of(model), places, slot_BS.gather(1, owner_BN), turn_BN, T, told)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While open, what this thread runs of the model's decoder attends to all places."""
        found = (attention_in(layer) for layer in self.decoder.layers)
        modules = [module for module in found if module is not None]
        points = {Point(self.decoder, When.BEFORE): self._begin}
        with acting(points), replaced(modules, self._attend):
            yield

    def call(self, ms: dict[str, float]) -> Call:
        """What was done."""
        return Call(self.told.prompts, {**self.told.ms, **ms}, self.told.stages)

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        require_growing(cache_at(module, args, kwargs))
        self.made = {}

    def _attend(
        self, attend: Callable[..., Any], module: Any, query: Tensor, key: Tensor, value: Tensor,
        _mask: Any, **options: Any,
    ) -> Any:  # fmt: skip
        Q, K = query.shape[2], key.shape[2]
        if (Q, K) not in self.made:
            self.made[Q, K] = self._laid(query, K)
        laid = self.made[Q, K]
        key, value = laid.turned(laid.taken(key)), laid.taken(value)
        if laid.whole:
            query = laid.turned(laid.taken(query))
        out, weights = attend(module, query, key, value, laid.mask(query), **options)
        return (laid.averaged(out, Q) if laid.whole else out), weights

    def _laid(self, query: Tensor, K: int) -> _Laid:
        E, Q, device = query.shape[0], query.shape[2], query.device
        since = torch.arange(self.length, K, device=device).expand(E, -1)
        if not (Q == K or since.shape[1] >= Q):
            raise UnsupportedError(
                f"Expected the prompt of {self.length} tokens to be read at once. Got {Q} of {K}. "
                "Leave out `prefill_chunk_size`."
            )
        repeats = E // len(self.slot_BN)
        slot, turn, real = (
            values.to(device).repeat_interleave(repeats, 0)
            for values in (self.slot_BN, self.turn_BN, self.places.real_BT)
        )
        slot_EM = torch.cat([slot, since], 1)
        turn_EM = torch.cat([turn, torch.zeros_like(since)], 1)
        real_EM = torch.cat([real, torch.ones_like(since, dtype=torch.bool)], 1)
        rotary = self.decoder.rotary_emb
        scale = float(getattr(rotary, "attention_scaling", 1.0))
        cos, sin = rotary(torch.zeros(1, device=device), turn_EM)
        eager = kind_of(self.decoder) == "eager"
        return _Laid(slot_EM, real_EM, cos / scale, sin / scale, Q == K, eager)


@dataclass(frozen=True)
class _Laid:
    """Where all places of one forward are, and how they are turned. whole: its queries are the
    prompt's too."""

    slot_EM: Int[Tensor, "E M"]
    real_EM: Bool[Tensor, "E M"]
    cos_EMd: Tensor
    sin_EMd: Tensor
    whole: bool
    eager: bool

    def taken(self, values_EHKd: Tensor) -> Tensor:
        """Of every place its token's."""
        E, H, _, d = values_EHKd.shape
        return values_EHKd.gather(2, self.slot_EM[:, None, :, None].expand(E, H, -1, d))

    def turned(self, values_EHMd: Tensor) -> Tensor:
        """Turned by the positions between a place and its token's own."""
        cos, sin = self.cos_EMd[:, None], self.sin_EMd[:, None]
        sizes = [cos.shape[-1], values_EHMd.shape[-1] - cos.shape[-1]]
        turning, rest = torch.split(values_EHMd.float(), sizes, -1)
        first, second = turning.chunk(2, -1)
        turned = turning * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([turned, rest], -1).to(values_EHMd.dtype)

    def mask(self, query: Tensor) -> Tensor:
        """(E, 1, Q, M) places up to a query's own; padded ones see themselves."""
        Q, M = query.shape[2], self.slot_EM.shape[1]
        seen = torch.ones(Q, M, dtype=torch.bool, device=query.device).tril(M - Q)
        own = torch.eye(M, dtype=torch.bool, device=query.device)[M - Q :]
        seen = (seen & self.real_EM[:, None]) | own
        if not self.eager:
            return seen[:, None]
        hidden = torch.finfo(query.dtype).min
        none = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
        return none.masked_fill(~seen, hidden)[:, None]

    def averaged(self, out_EMHd: Tensor, length: int) -> Tensor:
        """(E, T, H, d) the mean over each token's places."""
        E, M, H, d = out_EMHd.shape
        count = self.real_EM.to(out_EMHd.dtype)
        flat = out_EMHd.reshape(E, M, H * d) * count[..., None]
        sums = flat.new_zeros(E, length, H * d)
        sums = sums.scatter_add(1, self.slot_EM[..., None].expand(E, M, H * d), flat)
        total = count.new_zeros(E, length).scatter_add(1, self.slot_EM, count).clamp_min(1)
        return (sums / total[..., None]).view(E, length, H, d)


def owners(
    encoded: Encoded, reductions: Sequence[ImageReduction], kept_BS: Bool[Tensor, "B S"]
) -> Int[Tensor, "B S"]:
    """The place each place's token went to, its own if it stayed, -1 if it is gone."""
    own_BS = torch.arange(kept_BS.shape[1], device=kept_BS.device).expand(kept_BS.shape)
    own_BS = own_BS.masked_fill(~kept_BS, -1)
    place_R = encoded.places.nonzero()[:, 1]
    into_R = own_BS[encoded.places]
    start = 0
    for packing, reduction in zip(encoded.packings, reductions, strict=True):
        origin_N = packing.origin_N.to(kept_BS.device)
        rows = slice(start, start + len(origin_N))
        start += len(origin_N)
        if reduction.assign_nL is None:
            continue
        assign_nL = reduction.assign_nL.to(kept_BS.device)
        first_n1 = torch.arange(len(assign_nL), device=kept_BS.device)[:, None] * packing.length
        flat_P = (assign_nL + first_n1).masked_fill(assign_nL < 0, -1).flatten()
        place_P = torch.full_like(flat_P, -1)
        place_P[origin_N[origin_N >= 0]] = place_R[rows][origin_N >= 0]
        to_N = flat_P[origin_N.clamp_min(0)].masked_fill(origin_N < 0, -1)
        joined_N = (into_R[rows] < 0) & (to_N >= 0)
        into_R[rows] = place_P[to_N.clamp_min(0)].where(joined_N, into_R[rows])
    return own_BS.masked_scatter(encoded.places, into_R)
