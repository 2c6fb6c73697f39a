"""Cuts inside the LLM: from a decoder layer on, only some visual tokens remain.

Hooks on the decoder layers gather what a layer is handed (hidden states, rotary embeddings,
position ids, mask), so every layer's cache holds just the tokens left there; positions stay what
they were, and windows count them (`masks`). Behind the last layer the sequence gets its length
back, zeros where a token went.

B prompts, E rows a prompt has (beams), S prompt length, R visual rows of all prompts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.hf.encoder.encode import Encoded
from tokensieve.hf.encoder.reduction import ImageReduction, crop_keys
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.llm import cut
from tokensieve.hf.llm.heard import Held
from tokensieve.hf.llm.inside import Listening, by_kind, require_finite
from tokensieve.hf.llm.masks import Masks, held_by
from tokensieve.hf.llm.probe import Probe
from tokensieve.hf.llm.stage import (
    Before,
    Policy,
    Stage,
    of_pictures,
    renewed,
    require_any,
    require_growing,
    require_once,
)  # fmt: skip
from tokensieve.hf.llm.weights import Weights
from tokensieve.hf.prompt.compaction import Gather, pads_left
from tokensieve.hf.prompt.reduce import reduce_visions
from tokensieve.hf.prompt.text import Asked
from tokensieve.hf.report import Call, StageReport, prompt_reports, row_mask, since
from tokensieve.hf.runtime.compat import cache_at
from tokensieve.hf.runtime.devices import moved
from tokensieve.hf.runtime.hooks import Action, Point, When, acting
from tokensieve.hf.runtime.timing import timed
from tokensieve.types import TextContext, VisionTokens


class Stages:
    """The stages at work on one prompt: choose during prefill, remember for what is decoded.

    early: per stage what its method chose before the LLM; None where it chooses inside.
    before: if the prompts had been shortened already; shares of tokens and reports are then of the
        pictures as they were.

    Raises `UnsupportedError` for a cache whose layers cannot differ in length, gradient
    checkpointing and masks that are no tensors.
    """

    def __init__(
        self, model: Any, encoded: Encoded, mask_BS: Tensor, stages: Sequence[Stage],
        early: Sequence[list[ImageReduction] | None], policy: Policy, before: Before | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.before = policy, before
        told = {k: v for k, v in encoded.inputs.items() if k in ("input_ids", "labels")}
        self.encoded = replace(encoded, inputs=told, output=None, features=None, signals={})
        self.decoder = decoder_of(model)
        self.stages = {s.layer: (s, made) for s, made in zip(stages, early, strict=True)}
        self.place_BS = encoded.places
        self.keep_BS, self.left = mask_BS.bool(), pads_left(mask_BS)
        self.asked = Asked.of(model, encoded.inputs, mask_BS)
        token_R = torch.cat([packing.origin_N >= 0 for packing in encoded.packings])
        self.token_BS = self.place_BS.masked_scatter(self.place_BS, token_R)
        self.gathers: dict[int, Gather] = {}  # by the first layer each is in force at
        self.filled = False  # the prompt has been read
        self.cache: Any = None  # if it is to forget what later cuts drop
        self.reports = [] if before is None else [StageReport(0, before.prompts)]
        self.ms: dict[str, float] = {}
        self.masks, self.weights = Masks.of(self.decoder, mask_BS), Weights(self.decoder)
        wanted = {at: s.signals for at, (s, made) in self.stages.items() if made is None}
        self.listening = Listening(self.decoder, wanted)  # to the layers before cuts
        self.probe = Probe(model.get_output_embeddings(), self.decoder, wanted)
        self.actions = self._actions()

    @property
    def length(self) -> int:
        """S."""
        return int(self.place_BS.shape[1])

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While open, what this thread runs of the model's decoder is cut."""
        with ExitStack() as stack:
            stack.enter_context(acting(self.actions))
            if not self.filled:  # what is decoded is not listened to
                stack.enter_context(self.listening.open())
            yield

    def _actions(self) -> dict[Point, Action]:
        layers = self.decoder.layers
        actions: dict[Point, Action] = {Point(self.decoder, When.BEFORE): self._begin}
        for number in range(min(self.stages), len(layers)):

            def before(
                _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int = number
            ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
                return self._before_layer(number, args, kwargs)

            actions[Point(layers[number], When.BEFORE)] = before
        actions[Point(layers[-1], When.AFTER)] = self._after_last
        return actions

    def call(self, ms: dict[str, float]) -> Call:
        """What was done, once the prompt has been read."""
        last = self.reports[-1].prompts if self.reports else ()
        return Call(last, {**ms, **self.ms}, tuple(self.reports))

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first layer: refuse what would go wrong silently."""
        self.masks.made = {}
        if self.filled:
            return
        require_growing(cache_at(module, args, kwargs))
        require_once(self.decoder)

    def _before_layer(
        self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        hidden, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
        if not self.filled and number in self.stages:
            cache = cache_at(self.decoder.layers[number], args, kwargs)
            require_growing(cache)  # made meanwhile
            self.cache = cache if self.stages[number][0].method.forgets else None
            self.listening.look_ahead(number, hidden, kwargs, self._gather(number))
            if self.probe.asked_at(number):
                self._probe(number, hidden, kwargs)
            hidden = self._cut(number, hidden)
        gather = self._gather(number)
        if gather is None:
            return None
        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        mask = kwargs.get("attention_mask")
        past = None
        if self.filled:
            cache = cache_at(self.decoder.layers[number], args, kwargs)
            mask = self.masks.decode(number, mask, gather, cache, hidden)
            past = held_by(cache, number)
        else:
            kwargs = cut.take_arguments(kwargs, gather)
            rest = cut.take_beside(rest, self.length, gather)
            mask = self.masks.prefill(number, mask, gather)
        mask = self.weights.added(number, mask, gather, hidden, past)
        return (hidden, *rest), kwargs | {"attention_mask": mask}

    def _probe(self, number: int, hidden_ETD: Tensor, kwargs: dict[str, Any]) -> None:
        """Run the layer on all it would hold."""
        self._follow(hidden_ETD.device)
        repeats, before = len(hidden_ETD) // len(self.place_BS), self._gather(number)
        read = (self.asked.read_BS & self.keep_BS).repeat_interleave(repeats, 0)
        if before is not None:
            mask = self.masks.prefill(number, kwargs.get("attention_mask"), before)
            kwargs = cut.take_arguments(kwargs, before) | {"attention_mask": mask}
            read = moved(before, read.device).take(read, 0)
        with timed(self.ms, "select", hidden_ETD.device):
            self.probe.run(number, hidden_ETD, kwargs, read)

    def _gather(self, number: int) -> Gather | None:
        """What is left at a layer; None: everything."""
        past = [layer for layer in self.gathers if layer <= number]
        return self.gathers[max(past)] if past else None

    def _after_last(self, _module: Any, _args: Any, output: Any) -> Any:
        if self.filled:
            return output
        self.filled, self.masks.made = True, {}
        gather = self._gather(len(self.decoder.layers))
        if gather is None:
            return output
        if self.cache is not None:
            cut.forget(self.cache, self.gathers, len(self.decoder.layers), self.length)
            self.gathers, self.cache = {min(self.gathers): gather}, None
            self.weights.only_last()
        if isinstance(output, tuple):
            return (cut.put_back(output[0], gather, self.length), *output[1:])
        return cut.put_back(output, gather, self.length)

    def _cut(self, number: int, hidden_ETD: Tensor) -> Tensor:
        """Choose at a stage; hidden states of what is left, (B * E, T, D)."""
        self._follow(hidden_ETD.device)
        repeats = len(hidden_ETD) // len(self.place_BS)
        before = self._gather(number)
        whole = hidden_ETD if before is None else cut.put_back(hidden_ETD, before, self.length)
        with timed(self.ms, "select", hidden_ETD.device):
            reductions = self._choose(number, whole[::repeats], before, repeats)
        masks = [
            row_mask(packing, reduction.kept_nL, drop_newlines=self.policy.drop_newlines)
            for packing, reduction in zip(self.encoded.packings, reductions, strict=True)
        ]
        prompts = prompt_reports(self.encoded, reductions, masks)
        if self.before is not None:
            prompts = since(self.before.prompts, prompts)
        self.reports.append(StageReport(number, prompts))
        alive_BS = self.keep_BS
        kept_BS = torch.ones_like(alive_BS).masked_scatter(
            self.place_BS, torch.cat(masks).to(alive_BS.device)
        )
        kept_BS &= alive_BS
        if torch.equal(kept_BS, alive_BS):
            return hidden_ETD
        require_any(kept_BS, number)
        if any(reduction.rows_nLD is not None for reduction in reductions):
            whole = renewed(whole, self.encoded, self.place_BS, reductions)
            hidden_ETD = whole if before is None else cut.take_rows(whole, before.index_BT)
        if self.stages[number][0].method.weighs_attention:
            self.weights.join(number, reductions, self.encoded, self.place_BS, self._of_pictures)
        self.keep_BS = kept_BS
        gather = Gather.of(kept_BS.repeat_interleave(repeats, 0), left=self.left)
        self.gathers[number] = gather
        return cut.take_rows(hidden_ETD, cut.compose(before, gather, self.length))

    def _follow(self, device: torch.device) -> None:
        """Layers may lie on several devices: what is known of the prompt goes along."""
        for name in ("place_BS", "keep_BS", "token_BS"):
            setattr(self, name, getattr(self, name).to(device))
        self.asked = moved(self.asked, device)

    def _choose(
        self, number: int, whole_BSD: Float[Tensor, "B S D"], before: Gather | None, repeats: int
    ) -> list[ImageReduction]:
        """What a stage keeps of each picture. before: what the layers up to it held."""
        (stage, early), encoded = self.stages[number], self.encoded
        if early is not None:
            return early
        packings = encoded.packings
        whole = packings if self.before is None else self.before.packings
        told = self._signals(number, before, repeats)
        alive = self._of_pictures(self.keep_BS[..., None])
        rows = self._of_pictures(whole_BSD)
        visions = []
        keys = crop_keys(encoded, self.policy.keys)
        for i, packing in enumerate(packings):
            vision = VisionTokens(
                rows[i], packing.grid, moved(packing, rows[i].device).valid_nL & alive[i][..., 0],
                keys=keys[i], frames=encoded.kinds[i : i + 1] == ("video",),
                signals={name: of_picture[i] for name, of_picture in told.items()}
                | ({} if self.before is None else self.before.told(i, rows[i].device)),
            )  # fmt: skip
            vision.require_finite(f"layer {number} of the LLM, picture {i + 1}")
            visions.append(vision)
        if not any(bool(vision.valid_BL.any()) for vision in visions):
            return [ImageReduction(vision.valid_BL) for vision in visions]  # all gone before

        def text(prompt: int) -> TextContext:
            return TextContext(whole_BSD[prompt][self.asked.seeing(self.keep_BS)[prompt]])

        found = reduce_visions(
            stage.method, visions, encoded.prompt_of, stage.keep, self.policy.spread, text,
            whole=[packing.valid_nL for packing in whole],
        )  # fmt: skip
        return [
            ImageReduction(reduction.kept & vision.valid_BL, reduction.tokens, reduction.assign)
            for vision, reduction in zip(visions, found, strict=True)
        ]

    def _signals(
        self, number: int, before: Gather | None, repeats: int
    ) -> dict[str, list[Float[Tensor, "n L *K"]]]:
        """What the stage's method is told of the layer before, or of its own, per picture."""
        if not (wanted := self.stages[number][0].signals):
            return {}
        first = None
        if before is not None:
            before = moved(before, self.keep_BS.device)
            first = Gather(before.index_BT[::repeats], before.real_BT[::repeats])
        words_BS, read_BS = self.asked.seeing(self.keep_BS), self.asked.read_BS & self.keep_BS
        masks = (self.keep_BS, words_BS, self.token_BS & self.keep_BS, read_BS)
        place_BS = torch.arange(self.length, device=self.keep_BS.device).expand(self.keep_BS.shape)
        along = (*masks, place_BS)
        held = Held(*(values if first is None else first.take(values, 0) for values in along))
        heard = self.listening.signals(number, held, repeats)
        heard |= self.probe.signals(number, repeats)
        texts = words_BS.sum(-1).tolist()
        lengths = [texts[prompt] for prompt in self.encoded.prompt_of]
        found = {}
        for name, values_BNK in heard.items():
            whole = values_BNK if first is None else cut.put_back(values_BNK, first, self.length)
            parts = by_kind(wanted[name].kind, self._of_pictures(whole), lengths)
            require_finite(parts, wanted[name].layer_at(number))
            found[name] = parts
        return found

    def _of_pictures(self, values_BSK: Tensor) -> list[Tensor]:
        """(n, L, K) per picture of values along the prompts; zeros where a token is gone."""
        zero = torch.zeros((), dtype=values_BSK.dtype, device=values_BSK.device)
        values = torch.where(self.keep_BS[..., None], values_BSK, zero)[self.place_BS]
        return of_pictures(values, self.encoded)
