"""Cuts inside the LLM: from a decoder layer on, only some visual tokens remain.

Hooks on the decoder layers gather what a layer is handed (hidden states, rotary embeddings,
position ids, mask), so every layer's cache holds just the tokens left there; positions stay what
they were. Behind the last layer the sequence gets its length back, zeros where a token went.

B prompts, E rows a prompt has (beams), S prompt length, R visual rows of all prompts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import Cache, DynamicCache

from tokensieve.budget import Pool
from tokensieve.errors import UnsupportedError
from tokensieve.hf import cut
from tokensieve.hf.compaction import Gather, pads_left
from tokensieve.hf.encode import Encoded
from tokensieve.hf.families import decoder_of
from tokensieve.hf.reduce import ImageReduction, crop_keys, reduce_visions, scatter_rows
from tokensieve.hf.report import Call, StageReport, prompt_reports, row_mask
from tokensieve.hf.timing import timed
from tokensieve.methods.base import Method
from tokensieve.types import TextContext, VisionTokens


@dataclass(frozen=True)
class Stage:
    """From decoder layer `layer` on, the share or count `keep` of a picture's tokens remain.

    `method` chooses them by the hidden states that enter the layer if its site is "llm"; otherwise
    it has chosen at its own site, before the LLM.
    """

    layer: int
    keep: float | int
    method: Method


@dataclass(frozen=True)
class Policy:
    """What holds for all stages of a prompt."""

    pool: Pool
    drop_newlines: bool
    keys: Sequence[int] | None = None


class Stages:
    """The stages at work on one prompt: choose during prefill, remember for what is decoded.

    early: per stage what its method chose before the LLM; None where it chooses inside.

    Raises `UnsupportedError` for a cache whose layers cannot differ in length, gradient
    checkpointing and masks that are no tensors.
    """

    def __init__(
        self, model: Any, encoded: Encoded, mask_BS: Tensor, stages: Sequence[Stage],
        early: Sequence[list[ImageReduction] | None], policy: Policy,
    ) -> None:  # fmt: skip
        self.model, self.encoded, self.policy = model, encoded, policy
        self.decoder = decoder_of(model)
        self.stages = {s.layer: (s, made) for s, made in zip(stages, early, strict=True)}
        self.place_BS = encoded.inputs["input_ids"] == encoded.placeholder
        self.keep_BS, self.left = mask_BS.bool(), pads_left(mask_BS)
        self.gathers: dict[int, Gather] = {}  # by the first layer each is in force at
        self.filled = False  # the prompt has been read
        self.cache: Cache | None = None
        self.reports: list[StageReport] = []
        self.ms: dict[str, float] = {}
        self.masks: dict[tuple[int, int], Tensor | None] = {}

    @property
    def length(self) -> int:
        """S."""
        return int(self.place_BS.shape[1])

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While open, the model's decoder is cut; its hooks go when it closes."""
        handles = self.hook()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hook(self) -> list[Any]:
        """Put the hooks on; the caller takes them off."""
        layers = self.decoder.layers
        handles = [self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for number in range(min(self.stages), len(layers)):

            def before(
                _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int = number
            ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
                return self._before_layer(number, args, kwargs)

            handles.append(layers[number].register_forward_pre_hook(before, with_kwargs=True))
        return [*handles, layers[-1].register_forward_hook(self._after_last)]

    def call(self, ms: dict[str, float]) -> Call:
        """What was done, once the prompt has been read."""
        last = self.reports[-1].prompts if self.reports else ()
        return Call(last, {**ms, **self.ms}, tuple(self.reports))

    def _begin(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Before the first layer: refuse what would go wrong silently."""
        self.masks = {}
        if self.filled:
            return
        _require_growing(kwargs.get("past_key_values"))
        if self.decoder.training and getattr(self.decoder, "gradient_checkpointing", False):
            raise UnsupportedError(
                "Expected no gradient checkpointing, which runs layers twice. Got it switched on. "
                "Call model.gradient_checkpointing_disable()."
            )

    def _before_layer(
        self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        hidden, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
        if not self.filled and number in self.stages:
            self.cache = kwargs.get("past_key_values")
            _require_growing(self.cache)  # the model may have made it
            hidden = self._cut(number, hidden)
        gather = self._gather(number)
        if gather is None:
            return None
        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        mask, flash = kwargs.get("attention_mask"), self._flash
        key = (id(mask), id(gather))
        if self.filled:
            if key not in self.masks:
                new = hidden.shape[1]
                self.masks[key] = cut.decode_mask(mask, gather, self.length, new, flash=flash)
        else:
            if key not in self.masks:
                self.masks[key] = cut.prefill_mask(mask, gather, flash=flash)
            if (rotary := kwargs.get("position_embeddings")) is not None:
                rows = (cut.take_rows(values, gather.index_BT) for values in rotary)
                kwargs["position_embeddings"] = tuple(rows)
            if (places := kwargs.get("position_ids")) is not None:
                kwargs["position_ids"] = cut.take_places(places, gather.index_BT)
        kwargs["attention_mask"] = self.masks[key]
        return (hidden, *rest), kwargs

    @property
    def _flash(self) -> bool:
        return "flash" in str(self.decoder.config._attn_implementation)

    def _gather(self, number: int) -> Gather | None:
        """What is left at a layer; None: everything."""
        past = [layer for layer in self.gathers if layer <= number]
        return self.gathers[max(past)] if past else None

    def _after_last(self, _module: Any, _args: Any, output: Any) -> Any:
        if self.filled:
            return output
        self.filled, self.masks = True, {}
        gather = self._gather(len(self.decoder.layers))
        if gather is None:
            return output
        if isinstance(output, tuple):
            return (cut.put_back(output[0], gather, self.length), *output[1:])
        return cut.put_back(output, gather, self.length)

    def _cut(self, number: int, hidden_ETD: Tensor) -> Tensor:
        """Choose at a stage; hidden states of what is left, (B * E, T, D)."""
        repeats = len(hidden_ETD) // len(self.place_BS)
        before = self._gather(number)
        whole = hidden_ETD if before is None else cut.put_back(hidden_ETD, before, self.length)
        with timed(self.ms, "select", hidden_ETD.device):
            reductions = self._choose(number, whole[::repeats])
        masks = [
            row_mask(packing, reduction.kept_nL, drop_newlines=self.policy.drop_newlines)
            for packing, reduction in zip(self.encoded.packings, reductions, strict=True)
        ]
        self.reports.append(StageReport(number, prompt_reports(self.encoded, reductions, masks)))
        alive_BS = self.keep_BS
        kept_BS = torch.ones_like(alive_BS).masked_scatter(self.place_BS, torch.cat(masks))
        kept_BS &= alive_BS
        if torch.equal(kept_BS, alive_BS):
            return hidden_ETD
        if any(reduction.rows_nLD is not None for reduction in reductions):
            whole = self._renewed(whole, reductions, repeats)
            hidden_ETD = whole if before is None else cut.take_rows(whole, before.index_BT)
        self.keep_BS = kept_BS
        gather = Gather.of(kept_BS.repeat_interleave(repeats, 0), left=self.left)
        self.gathers[number] = gather
        return cut.take_rows(hidden_ETD, cut.compose(before, gather, self.length))

    def _choose(self, number: int, whole_BSD: Float[Tensor, "B S D"]) -> list[ImageReduction]:
        stage, early = self.stages[number]
        if early is not None:
            return early
        encoded, packings = self.encoded, self.encoded.packings
        sizes = encoded.image_rows
        rows = torch.split(whole_BSD[self.place_BS], sizes)
        alive = torch.split(self.keep_BS[self.place_BS], sizes)
        visions = []
        keys = crop_keys(encoded, self.policy.keys)
        for i, packing in enumerate(packings):
            total, shape = packing.crops * packing.length, (packing.crops, packing.length)
            valid_nL = scatter_rows(alive[i][:, None], packing.origin_N, total).view(shape)
            tokens = scatter_rows(rows[i], packing.origin_N, total).view(*shape, -1)
            vision = VisionTokens(tokens, packing.grid, packing.valid_nL & valid_nL, keys=keys[i])
            vision.require_finite(f"layer {number} of the LLM, picture {i + 1}")
            visions.append(vision)

        def text(prompt: int) -> TextContext:
            real_S = self.keep_BS[prompt] & ~self.place_BS[prompt]
            return TextContext(whole_BSD[prompt][real_S])

        found = reduce_visions(
            stage.method, visions, encoded.prompt_of, stage.keep, self.policy.pool, text,
            whole=[packing.valid_nL for packing in packings],
        )  # fmt: skip
        return [
            ImageReduction(reduction.kept & vision.valid_BL, reduction.tokens, reduction.assign)
            for vision, reduction in zip(visions, found, strict=True)
        ]

    def _renewed(self, whole: Tensor, reductions: Sequence[ImageReduction], repeats: int) -> Tensor:
        """Hidden states with the values a method made for its kept tokens."""
        place = self.place_BS.repeat_interleave(repeats, 0)
        parts = list(torch.split(whole[::repeats][self.place_BS], self.encoded.image_rows))
        for i, reduction in enumerate(reductions):
            if reduction.rows_nLD is not None:
                new = reduction.rows_nLD.flatten(0, 1).to(whole.dtype)
                parts[i] = _overlay(parts[i], new, self.encoded.packings[i].origin_N)
        of_prompt = torch.split(torch.cat(parts), self.place_BS.sum(-1).tolist())
        repeated = [rows for rows in of_prompt for _ in range(repeats)]
        return whole.masked_scatter(place[..., None], torch.cat(repeated))


def _overlay(rows_ND: Tensor, new_TD: Tensor, origin_N: Tensor) -> Tensor:
    """Rows of tokens from `new`, structural ones as they are."""
    taken = new_TD[origin_N.clamp(min=0)]
    token_N: Bool[Tensor, "N"] = origin_N >= 0
    return torch.where(token_N[:, None], taken, rows_ND)


def _require_growing(cache: Cache | None) -> None:
    if cache is None or (type(cache) is DynamicCache and not any(cache.is_sliding)):
        return
    raise UnsupportedError(
        "Expected a DynamicCache without sliding windows, whose layers may differ in length. Got "
        f"{type(cache).__name__}. Leave out `cache_implementation` and `past_key_values`, or use a "
        "method that acts before the LLM."
    )
