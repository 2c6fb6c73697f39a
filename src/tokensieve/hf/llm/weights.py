"""Tokens that stand for several: later layers attend to each as often as it stands for others.

B prompts, E rows of all prompts and beams, S prompt length, T tokens left, Q queries, K keys of a
layer, n crops of a picture, L tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.encoder.reduction import ImageReduction
from tokensieve.hf.families.towers import attention_in
from tokensieve.hf.prompt.compaction import Gather
from tokensieve.hf.runtime.devices import moved


@dataclass
class Weights:
    """How many tokens each place of the prompts stands for, by the first layer that is so."""

    decoder: Any
    by_layer: dict[int, Float[Tensor, "B S"]] = field(default_factory=dict)

    def at(self, number: int) -> Float[Tensor, "B S"] | None:
        """Those in force at a layer; None: all stand for themselves."""
        past = [layer for layer in self.by_layer if layer <= number]
        return self.by_layer[max(past)] if past else None

    def note(self, number: int, weight_BS: Float[Tensor, "B S"]) -> None:
        """From layer `number` on. Raises `UnsupportedError` for attention without a mask of
        numbers."""
        kind = kind_of(self.decoder)
        if bool((weight_BS == 1).all()):
            return
        if kind not in ("sdpa", "eager"):
            raise UnsupportedError(
                "Expected attention that takes a mask of numbers (sdpa or eager), for tokens that "
                f"weigh as many as they stand for. Got '{kind}'. Call "
                "model.set_attn_implementation('sdpa'), or pass proportional=False."
            )
        self.by_layer[number] = weight_BS

    def join(
        self, number: int, reductions: Sequence[ImageReduction], encoded: Encoded,
        place_BS: Bool[Tensor, "B S"], of_pictures: Callable[[Tensor], list[Tensor]],
    ) -> None:  # fmt: skip
        """From layer `number` on, tokens that others joined count for them."""
        weight_BS = self.at(number)
        if weight_BS is None:
            weight_BS = torch.ones_like(place_BS, dtype=torch.float32)
        rows = []
        pictures = zip(of_pictures(weight_BS[..., None]), reductions, encoded.packings, strict=True)
        for before_nL1, reduction, packing in pictures:
            now_nL = stood_for(before_nL1[..., 0], reduction.assign_nL)
            origin_N = packing.origin_N.to(now_nL.device)
            of_N = now_nL.flatten()[origin_N.clamp_min(0)]
            rows.append(of_N.masked_fill(origin_N < 0, 1))  # a row that is no token
        self.note(number, weight_BS.masked_scatter(place_BS, torch.cat(rows).to(weight_BS.device)))

    def only_last(self) -> None:
        """All layers hold what the last cut left."""
        if self.by_layer:
            last = self.by_layer[max(self.by_layer)]
            self.by_layer = {min(self.by_layer): last}

    def added(
        self, number: int, mask: Tensor | None, gather: Gather, hidden: Tensor, past: int | None
    ) -> Tensor | None:
        """The mask of a layer with the logarithms of weights on its keys; as it is of a layer
        without attention, as some of a hybrid.

        hidden: (E, Q, D) what the layer reads. past: tokens its cache holds; None: it reads the
        prompt for the first time.
        """
        weight_BS = self.at(number)
        if weight_BS is None or attention_in(self.decoder.layers[number]) is None:
            return mask
        gather = moved(gather, hidden.device)
        weight_ES = weight_BS.repeat_interleave(len(hidden) // len(weight_BS), 0).to(hidden.device)
        log_EK = weight_ES.gather(1, gather.index_BT).log().masked_fill(~gather.real_BT, 0)
        if past is not None:  # what was decoded since
            behind = past + hidden.shape[1] - log_EK.shape[1]
            log_EK = torch.nn.functional.pad(log_EK, (0, behind))
        return added_to(mask, log_EK, hidden.shape[1], hidden.dtype)


def kind_of(decoder: Any) -> str:
    """Of attention."""
    return str(decoder.config._attn_implementation)


def added_to(
    mask: Tensor | None, log_EK: Float[Tensor, "E K"], queries: int, dtype: torch.dtype
) -> Tensor:
    """(E, 1, Q, K) a mask of numbers; without one, of keys up to each query."""
    if mask is None:
        K = log_EK.shape[1]
        seen = torch.ones(queries, K, dtype=torch.bool, device=log_EK.device)
        mask = seen.tril(K - queries)[None, None]
    if mask.dtype == torch.bool:
        hidden = torch.finfo(dtype).min
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, hidden)
    return mask + log_EK[:, None, None, -mask.shape[-1] :].to(mask)


def stood_for(
    before_nL: Float[Tensor, "n L"], assign_nL: Int[Tensor, "n L"] | None
) -> Float[Tensor, "n L"]:
    """What each token stands for once others joined it."""
    if assign_nL is None:
        return before_nL
    given_nL = before_nL.masked_fill(assign_nL < 0, 0)
    into_nL = assign_nL.clamp_min(0).to(before_nL.device)
    return torch.zeros_like(before_nL).scatter_add_(1, into_nL, given_nL).clamp_min(1)
