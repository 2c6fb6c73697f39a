"""vLLM's processors, whose prompts have fewer placeholders and whose caches know the setting.

N placeholders of a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from tokensieve.errors import UnsupportedError
from tokensieve.serving.items import ItemSieve
from tokensieve.serving.setting import NAME, Setting
from tokensieve.serving.vllm import FAMILIES

KEEP = "tokensieve_keep"  # a field of each picture, from the processor to the encoder


def setting_of(config: Any) -> Setting | None:
    """What `--hf-overrides` says; None: nothing, and vLLM is to be as it was."""
    given = getattr(config, NAME, None)
    return None if given is None else Setting.of(given)


def sieve_of(architecture: str, config: Any) -> ItemSieve | None:
    """The same, made ready for the model of that config.

    Raises `UnsupportedError` for an architecture whose answers nobody has compared, and what
    `ItemSieve` raises.
    """
    if (setting := setting_of(config)) is None:
        return None
    if architecture not in FAMILIES:
        raise UnsupportedError(
            f"Expected one of the architectures {', '.join(FAMILIES)}. Got {architecture}, which "
            f'is not shown to answer as under a sieve. Leave "{NAME}" out of --hf-overrides, or '
            "serve with Transformers."
        )
    return ItemSieve(config, setting, "renumber")


def processor_factory(own: Callable[..., Any], architecture: str) -> Callable[..., Any]:
    """A factory of processors like vLLM's `own`, which it gives where nothing is asked for."""

    def make(info: Any, dummy_inputs: Any, **more: Any) -> Any:
        if (sieve := sieve_of(architecture, info.ctx.model_config.hf_config)) is None:
            return own(info, dummy_inputs, **more)
        plain = type(own(info, dummy_inputs, **more))
        kind = type(f"Sieved{plain.__name__}", (SievedProcessor, plain), {})
        sieved = kind(info, dummy_inputs, **more)
        sieved.sieve = sieve
        return sieved

    return make


def pictures_only(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A factory of what a processor takes, like vLLM's `own`: of videos nothing is dropped yet, so
    that a server with a setting takes none."""

    def make(context: Any) -> Any:
        made = own(context)
        if setting_of(context.model_config.hf_config) is None:
            return made
        plain = type(made)

        def get_supported_mm_limits(self: Any) -> Mapping[str, int | None]:
            return {"image": plain.get_supported_mm_limits(self)["image"]}

        inside = {"get_supported_mm_limits": get_supported_mm_limits}
        return type(plain.__name__, (plain,), inside)(context)

    return make


class SievedProcessor:
    """In front of vLLM's processor of a family; what of it is used is documented for overriding."""

    sieve: ItemSieve

    def _told(self, arguments: Mapping[str, Any]) -> tuple[float | int, dict[str, Any]]:
        """What a request keeps, and its other arguments, which are for the family's processor."""
        rest = dict(arguments)
        return self.sieve.setting.keep_of(rest.pop(NAME, None)), rest

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """What encoder cache and prefix cache tell pictures by, with the setting in it."""
        keep, rest = self._told(inputs.hf_processor_mm_kwargs)
        rest[NAME] = self.sieve.setting.key(keep)
        marked = dataclasses.replace(inputs, hf_processor_mm_kwargs=rest)
        return super()._get_mm_hashes(marked)  # type: ignore[misc]

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        keep, rest = self._told(hf_kwargs)
        out = super()._apply_hf_processor_main(mm_items, rest)  # type: ignore[misc]
        if count := mm_items.get_all_counts().get("image", 0):
            out[KEEP] = torch.full((count,), float(keep), dtype=torch.float64)
        return out

    def _get_mm_fields_config(self, hf_inputs: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        from vllm.multimodal.inputs import MultiModalFieldConfig

        fields = super()._get_mm_fields_config(hf_inputs, self._told(hf_kwargs)[1])  # type: ignore[misc]
        return {**fields, KEEP: MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        keep, rest = self._told(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, rest, out_mm_kwargs)  # type: ignore[misc]
        return [self._shorter(update, out_mm_kwargs, keep) for update in updates]

    def _shorter(self, update: Any, fields: Any, keep: float | int) -> Any:
        own = update.replacement

        def replacement(item: int) -> Any:
            view = {
                name: torch.as_tensor(value)[None]
                for name, value in fields["image"][item].get_data().items()
                if name in ("image_grid_thw", "image_sizes")
            }
            return self._kept(own(item) if callable(own) else own, view, keep)

        return dataclasses.replace(update, replacement=replacement)

    def _kept(self, content: Any, view: Mapping[str, Any], keep: float | int) -> Any:
        """A picture's stretch of the prompt without the placeholders of rows that go."""
        from vllm.multimodal.processing import PromptUpdateDetails

        whole = content if isinstance(content, PromptUpdateDetails) else None
        ids = list(content if whole is None else whole.full)
        place = [True] * len(ids)
        if whole is not None and whole.is_embed is not None:
            place = [bool(one) for one in whole.is_embed(ids)]
        stretches = [(embeds, len(list(own))) for embeds, own in groupby(place)]
        left = iter(self.sieve.counts(view, [n for embeds, n in stretches if embeds], keep))
        shorter, at = [], 0
        for embeds, length in stretches:
            shorter += ids[at : at + (next(left) if embeds else length)]
            at += length
        return shorter if whole is None else dataclasses.replace(whole, full=shorter)
