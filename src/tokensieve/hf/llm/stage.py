"""What a cut inside the LLM is asked to do, and what it needs to know of the prompt.

B prompts, S prompt length, N rows of a picture, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import Cache, DynamicCache

from tokensieve.budget import Spread
from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.encoder.reduction import ImageReduction
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.prompt.reduce import scatter_rows
from tokensieve.hf.report import PromptReport
from tokensieve.methods.base import PROTECTED, Method
from tokensieve.types import Signal


@dataclass(frozen=True)
class Stage:
    """From decoder layer `layer` on, the share `keep` of a picture's tokens, or at most that
    many, remain.

    `method` chooses them by the hidden states that enter the layer if its site is "llm"; otherwise
    it has chosen at its own site, before the LLM. signals: what it must be told of the attention
    of the layer before, or at the cut.
    """

    layer: int
    keep: float | int
    method: Method
    signals: Mapping[str, Signal] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """What holds for all stages of a prompt."""

    spread: Spread
    drop_newlines: bool
    keys: Sequence[int] | None = None


@dataclass(frozen=True)
class Before:
    """What another method left before the LLM: the pictures as they were, its report, and what it
    protects of each picture, if anything."""

    packings: Sequence[Packing]
    prompts: tuple[PromptReport, ...]
    protected: Sequence[Bool[Tensor, "n L"]] = ()

    def told(self, picture: int, device: torch.device) -> dict[str, Tensor]:
        """What a method inside is told of a picture beside its signals."""
        if not self.protected:
            return {}
        return {PROTECTED: self.protected[picture].to(device).float()}


def overlay(rows_ND: Tensor, new_TD: Tensor, origin_N: Tensor) -> Tensor:
    """Rows of tokens from `new`, structural ones as they are."""
    origin_N = origin_N.to(rows_ND.device)
    taken = new_TD[origin_N.clamp(min=0)]
    token_N: Bool[Tensor, "N"] = origin_N >= 0
    return torch.where(token_N[:, None], taken, rows_ND)


def renewed(
    whole_ESD: Tensor, encoded: Encoded, place_BS: Tensor, reductions: Sequence[ImageReduction]
) -> Tensor:
    """Hidden states with the values a method made for its kept tokens; of beams the first's."""
    repeats = len(whole_ESD) // len(place_BS)
    parts = list(torch.split(whole_ESD[::repeats][place_BS], encoded.image_rows))
    for i, reduction in enumerate(reductions):
        if reduction.rows_nLD is not None:
            new = reduction.rows_nLD.flatten(0, 1).to(whole_ESD.dtype)
            parts[i] = overlay(parts[i], new, encoded.packings[i].origin_N)
    of_prompt = torch.split(torch.cat(parts), place_BS.sum(-1).tolist())
    repeated = [rows for rows in of_prompt for _ in range(repeats)]
    place_ES = place_BS.repeat_interleave(repeats, 0)
    return whole_ESD.masked_scatter(place_ES[..., None], torch.cat(repeated))


def of_pictures(values_RK: Tensor, encoded: Encoded) -> list[Tensor]:
    """(n, L, K) per picture of values along all visual rows; zeros where a token has no row."""
    parts = []
    for rows, packing in zip(
        torch.split(values_RK, encoded.image_rows), encoded.packings, strict=True
    ):
        shape = (packing.crops, packing.length, values_RK.shape[-1])
        total = packing.crops * packing.length
        parts.append(scatter_rows(rows, packing.origin_N, total).view(shape))
    return parts


def require_growing(cache: Cache | None) -> None:
    """Raise `UnsupportedError` for a cache whose layers may not differ in length."""
    if cache is None or type(cache) is DynamicCache:
        return
    raise UnsupportedError(
        "Expected a DynamicCache whose layers may differ in length. Got "
        f"{type(cache).__name__}. Leave out `cache_implementation` and `past_key_values`, or use a "
        "method that acts before the LLM."
    )


def require_any(kept_BS: Bool[Tensor, "B S"], number: int) -> None:
    """Raise `PromptError` for a prompt of which nothing is left from layer `number` on."""
    if not bool(kept_BS.any(-1).all()):
        raise PromptError(
            f"Expected text beside the picture. Got a prompt of which nothing stays from layer "
            f"{number} of the LLM on. Add a question."
        )


def require_once(decoder: Any) -> None:
    """Raise `UnsupportedError` for a decoder that runs its layers twice, to save memory."""
    if decoder.training and getattr(decoder, "gradient_checkpointing", False):
        raise UnsupportedError(
            "Expected no gradient checkpointing, which runs layers twice. Got it switched on. "
            "Call model.gradient_checkpointing_disable()."
        )
