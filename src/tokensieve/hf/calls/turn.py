"""The next turn of a chat: a prompt that goes on behind a cache filled under a sieve.

Inputs are those of the whole conversation, as a chat template gives them; what the cache holds of
it is found again, pictures that are new are shortened like any other, and `generate` is handed the
conversation as short as the cache has it. As in Transformers, only the new tokens may be given too,
with the mask of the whole.

B prompts, S length of the conversation, T length of it shortened, n tokens the cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.budget import Pool
from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.cache.memory import Memory, grids_of, memory_of
from tokensieve.hf.calls.call import refuse_behind
from tokensieve.hf.choose import Choice, choose
from tokensieve.hf.compress import Compressed, refuse_renumber, shortened_inputs
from tokensieve.hf.encoder.encode import PIXELS, refuse_unsupported
from tokensieve.hf.families.positions import mask_of, original_positions
from tokensieve.hf.families.table import family_of, placeholders_of
from tokensieve.hf.plan import Plan
from tokensieve.hf.prompt.compaction import SEQUENCE
from tokensieve.hf.proof import is_proven
from tokensieve.hf.report import Call, PromptReport
from tokensieve.hf.runtime.compat import CACHE_NAMES, cache_of, layers_of_cache, require_token_types


def next_turn(model: Any, plan: Plan, inputs: Mapping[str, Any]) -> Compressed:
    """The conversation in `inputs`, as short as its filled cache has it, with new pictures
    shortened.

    Raises `PromptError` for a conversation other than the one in the cache, and for pictures that
    fit neither all placeholders nor the new ones; `UnsupportedError` where tokens are dropped
    inside the LLM, for a budget over all pictures of a prompt, and for a family that reads its
    prompt in both directions.
    """
    refuse_unsupported(model, inputs)
    memory = memory_of(model, cache_of(inputs))
    if plan.stages or (memory is not None and memory.inside):
        raise UnsupportedError(
            "Expected a prompt without a cache where tokens are dropped inside the LLM. Got one "
            "that goes on behind a filled cache. Pass the whole conversation and no cache, or use "
            "a method that acts before the LLM."
        )
    if family_of(model).both_ways:
        raise UnsupportedError(
            f"Expected a whole conversation and no cache for {type(model).__name__}, which reads "
            "its prompt in both directions, so that a later turn changes what is cached. Got a "
            "filled cache. Leave it out."
        )
    conversation = _Conversation(model, inputs, memory)
    video = placeholders_of(model).get("video")
    given = conversation.inputs["input_ids"]
    if memory is not None and video is not None and bool((given == video).any()):
        raise UnsupportedError(
            "Expected pictures in a conversation that goes on behind a cache filled under a sieve. "
            "Got a video. Pass the whole conversation and no cache."
        )
    if not conversation.memory.begun and not bool(conversation.new_BS.any()):
        return conversation.plain(plan)
    refuse_behind(model, inputs)
    if not (plan.trusted or is_proven(model, renumber=plan.renumber)):
        raise UnsupportedError(
            f"Expected the first picture of {type(model).__name__}, whose family tokensieve does "
            "not know, in a prompt without a cache, where it can prove itself. Got one behind a "
            "filled cache. Pass the whole conversation and no cache, or trusted=True."
        )
    return conversation.shortened(plan)


class _Conversation:
    """A conversation and what a cache holds of it."""

    def __init__(self, model: Any, inputs: Mapping[str, Any], memory: Memory | None) -> None:
        self.model, self.as_given = model, inputs
        held = int(cache_of(inputs).get_seq_length())
        given, mask = inputs["input_ids"], inputs.get("attention_mask")
        if mask is not None and mask.shape[-1] == given.shape[-1]:
            mask = None  # all of the conversation is given
        if memory is not None and held < memory.length and not (memory.less or memory.pictures):
            memory = None  # cropped: plain all the same
        self.memory = memory or Memory.plain(model, given if mask is None else given[:, :0], held)
        if memory is not None:
            self._check_whole(cache_of(inputs), held)
        self.past = self.memory.length + held - self.memory.short_length  # of S, in the cache
        if mask is not None:
            self._check_lengths(given, mask)
            ids = torch.cat([self.memory.ids(self.past).to(given.device), given], 1)
        else:
            self._check_same(given)
            ids = given
        self.inputs = {**inputs, "input_ids": ids}
        self.inputs["attention_mask"] = mask_of(model, self.inputs)
        self.given = given
        self.inputs |= self._sequences(inputs)
        self.placeholder = int(model.config.image_token_id)
        self.new_BS = ids == self.placeholder
        self.new_BS[:, : self.past] = False

    def _check_whole(self, cache: Any, held: int) -> None:
        """All that was noted is still there, in every layer."""
        lengths = {
            int(layer.get_seq_length())
            for layer in cache.layers
            if hasattr(layer, "get_seq_length")
        }  # others hold a state, of no length
        if len(cache.layers) < layers_of_cache(self.model):
            lengths.add(0)
        if held < self.memory.short_length or len(lengths) > 1:
            raise UnsupportedError(
                f"Expected a cache that holds the {self.memory.short_length} tokens of its prompt "
                f"in every layer. Got {' and '.join(map(str, sorted(lengths)))}: it was cropped, "
                "or a forward that filled it was interrupted. Pass the whole conversation and no "
                "cache."
            )

    def _check_lengths(self, given: Tensor, mask: Tensor) -> None:
        if mask.shape[-1] != self.past + given.shape[-1]:
            raise PromptError(
                f"Expected a mask of the {self.past} tokens so far and {given.shape[-1]} new ones. "
                f"Got one of {mask.shape[-1]}. Pass the ids of the whole conversation, or the new "
                "ones with the mask of the whole."
            )

    def _check_same(self, given: Tensor) -> None:
        known = self.memory.known(self.past).to(given.device)
        if given.shape[-1] <= self.past or len(given) != len(known):
            raise PromptError(
                f"Expected {len(known)} conversation(s) of the {self.past} tokens in the cache and "
                f"new ones behind them. Got {len(given)} of {given.shape[-1]}. Pass the whole "
                "conversation, or no cache."
            )
        if (missing := self.past - known.shape[1]) > 0:
            raise UnsupportedError(
                "Expected a cache of which all tokens are known. Got one whose last "
                f"{missing} are not: an answer that was interrupted, or chosen from beams. Take "
                f"them off with cache.crop(-{missing}), or pass the whole conversation and no "
                "cache."
            )
        same = given[:, : known.shape[1]] == known
        if not bool(same.all()):
            first = int((~same).any(0).nonzero()[0])
            raise PromptError(
                "Expected the conversation that the cache holds, with new tokens behind it. Got "
                f"other tokens from position {first} on. Build the turn from what `generate` "
                "returned, or pass the whole conversation and no cache."
            )

    def _sequences(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What runs along the conversation: as given, or remembered and gone on with."""
        S, found = self.inputs["input_ids"].shape[1], {}
        for name in SEQUENCE:
            if name == "labels":
                continue
            new, old = inputs.get(name), self.memory.sequences.get(name)
            if isinstance(new, Tensor) and new.shape[-1] == S:
                found[name] = new
            elif old is not None or isinstance(new, Tensor):
                like = new if isinstance(new, Tensor) else old
                whole = like.new_zeros(len(self.given), S)  # type: ignore[union-attr]
                if old is not None:
                    whole[:, : old.shape[-1]] = old
                if isinstance(new, Tensor):
                    whole[:, S - new.shape[-1] :] = new
                found[name] = whole
        return found

    def plain(self, plan: Plan) -> Compressed:
        """The turn as it is given, but for pictures that have been read: nothing of ours is in the
        cache, and there is nothing to shorten."""
        base = {k: v for k, v in self.as_given.items() if k not in (*PIXELS, "mm_encoder_outputs")}
        report = plan.report([Call(self.no_pictures)])
        memory = self.memory.passed(self.inputs)
        return Compressed(base, None, report, self.given, memory=memory)

    def shortened(self, plan: Plan) -> Compressed:
        """The conversation with its new pictures shortened by `plan`."""
        self._check_positions(plan)
        require_token_types(self.model, self.inputs, self.new_BS)
        mask = self.inputs["attention_mask"]
        keep_BS, rows = mask.bool().clone(), None
        prompts = self.no_pictures
        ms: dict[str, float] = {}
        grids = self.memory.grids
        if bool(self.new_BS.any()):
            choice, new = self._choose(plan)
            masks = [m if is_new else torch.zeros_like(m)
                     for m, is_new in zip(choice.masks, new, strict=True)]  # fmt: skip
            keep_R = torch.cat(masks)
            rows = choice.rows(keep_R)
            encoded = choice.encoded
            place_BS = encoded.inputs["input_ids"] == encoded.placeholder
            kept_BS = keep_BS.masked_scatter(place_BS, keep_R.to(keep_BS.device))
            keep_BS[:, self.past :] &= kept_BS[:, self.past :]
            prompts, ms = _of_new(choice, new), choice.ms
            grids = self._grids(choice, new)
        gather = self.memory.followed(keep_BS, self.past)
        told = {k: v for k, v in self.inputs.items() if k not in PIXELS and k not in CACHE_NAMES}
        told.pop("mm_encoder_outputs", None)
        positions = original_positions(self.model, {**told, **grids}, mask)
        refuse_renumber(positions, plan)
        base = shortened_inputs(self.model, self.inputs, gather, positions, renumber=plan.renumber)
        report = plan.report([Call(prompts, ms)])
        memory = self.memory.then(self.inputs, gather, grids, prompts, renumber=plan.renumber)
        return Compressed(base, rows, report, self.given, gather, memory)

    @property
    def no_pictures(self) -> tuple[PromptReport, ...]:
        """The report of a turn without pictures."""
        return tuple(PromptReport(()) for _ in self.given)

    def _check_positions(self, plan: Plan) -> None:
        """Positions go on as they began."""
        S, given = self.inputs["input_ids"].shape[1], self.inputs.get("position_ids")
        if given is not None and given.shape[-1] != S:
            raise PromptError(
                f"Expected `position_ids` of the whole conversation, {S}. Got {given.shape[-1]}. "
                "Leave them out; they are found."
            )
        if self.memory.shortened and plan.renumber != self.memory.renumber:
            began = "renumber" if self.memory.renumber else "keep"
            raise UnsupportedError(
                f"Expected positions='{began}', as this cache was filled with. Got another sieve. "
                "Open it with the same `positions`, or pass the whole conversation and no cache."
            )

    def _choose(self, plan: Plan) -> tuple[Choice, list[bool]]:
        """What stays of the pictures given, and which of them are new to the cache."""
        if plan.pool is Pool.PROMPT and self.memory.pictures:
            raise UnsupportedError(
                "Expected pool='crop' or 'image' for a new picture behind a filled cache. Got "
                "'prompt', a budget for all pictures of a prompt, of which some have been read. "
                "Pass the whole conversation and no cache."
            )
        whole = {k: v for k, v in self.inputs.items() if k not in CACHE_NAMES}
        ids = whole["input_ids"]
        only_new = {**whole, "input_ids": ids.where((ids != self.placeholder) | self.new_BS, 0)}
        tries = [whole, only_new] if self.memory.outgrown(self.inputs) else [only_new, whole]
        for inputs in tries:
            try:
                read = self.memory.crops if inputs is only_new else None
                choice = choose(self.model, plan, inputs, read=read)
            except PromptError:
                continue
            return choice, self._are_new(choice)
        raise PromptError(
            "Expected the pictures of the whole conversation, or those of its "
            f"{int(self.new_BS.sum())} new image placeholders. Got others. Pass what the processor "
            "returns for the whole conversation."
        )

    def _grids(self, choice: Choice, new: list[bool]) -> dict[str, Tensor]:
        """Of all pictures of the conversation."""
        if not all(new):
            return grids_of(self.inputs)
        before_BS = (self.inputs["input_ids"] == self.placeholder) & ~self.new_BS
        if not self.memory.begun and bool(before_BS.any()):
            raise PromptError(
                "Expected the pictures of the whole conversation, some of which were read without "
                "a sieve. Got only the new ones. Pass what the processor returns for all of it."
            )
        return self.memory.with_grids(self.inputs, choice.encoded.prompt_of, new)

    def _are_new(self, choice: Choice) -> list[bool]:
        """Of each picture, whether its first row stands behind what the cache holds."""
        encoded = choice.encoded
        place_BS = encoded.inputs["input_ids"] == encoded.placeholder
        at_R = place_BS.nonzero()[:, 1]
        new, row = [], 0
        for count in encoded.image_rows:
            new.append(bool(at_R[row] >= self.past))
            row += count
        return new


def _of_new(choice: Choice, new: list[bool]) -> tuple[PromptReport, ...]:
    """The report of the pictures that are new."""
    flags, done = iter(new), []
    counts = [len(prompt.images) for prompt in choice.prompts]
    of_prompt = [[next(flags) for _ in range(count)] for count in counts]
    for prompt, kept in zip(choice.prompts, of_prompt, strict=True):
        images = tuple(i for i, is_new in zip(prompt.images, kept, strict=True) if is_new)
        done.append(replace(prompt, images=images))
    return tuple(done)
