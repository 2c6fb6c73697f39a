"""The vision encoder, run once: what it gave, and how that lies in the prompts.

B prompts, S prompt length, N rows of a picture, n crops of it, L tokens of a crop, C width.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.attention.signals import EncoderSignals
from tokensieve.hf.families.layout import Packing, one_to_one
from tokensieve.hf.families.table import Family, crop_features, family_of, projector_of
from tokensieve.hf.runtime.arguments import PIXELS as PIXELS
from tokensieve.hf.runtime.arguments import encoding, require_inputs
from tokensieve.hf.runtime.devices import at_hand
from tokensieve.hf.runtime.hooks import Point, When, acting
from tokensieve.hf.runtime.timing import timed
from tokensieve.types import Signal


@dataclass(frozen=True)
class Encoded:
    """Prompts with their pictures encoded; `compress` takes one as often as you like.

    inputs: the inputs as given. placeholder: token id of a visual row in the prompt.
    packings, prompt_of: one per picture. item_rows: rows of each entry of the encoder's output.
    output: what `get_image_features` returned; None where the encoder was not run.
    features: (n, L, C) per picture, the projector's input; None where that is not one row a token.
    blank: `output` holds no encoded picture yet, only room for its rows.
    signals: (n, L) or (n, L, K) per picture, of what was asked for.
    read: crops of each prompt that were read before these, in an earlier turn.
    """

    inputs: dict[str, Any]
    family: Family
    placeholder: int
    packings: tuple[Packing, ...] = ()
    prompt_of: tuple[int, ...] = ()
    item_rows: tuple[int, ...] = ()
    output: Any = None
    features: tuple[Tensor, ...] | None = None
    ms: dict[str, float] = field(default_factory=dict)
    blank: bool = False
    signals: Mapping[Signal, tuple[Tensor, ...]] = field(default_factory=dict)
    read: Mapping[int, int] = field(default_factory=dict)

    @property
    def image_rows(self) -> list[int]:
        """N of each picture."""
        return [len(packing.origin_N) for packing in self.packings]

    @property
    def images(self) -> list[Tensor]:
        """(N, D) rows of each picture, as the LLM gets them."""
        items = [item.reshape(-1, item.shape[-1]) for item in self.output.pooler_output]
        return list(torch.split(torch.cat(items), self.image_rows))

    def with_prompt(self, **text: Any) -> Encoded:
        """The same pictures under other text: new `input_ids`, `attention_mask`, `labels`, ...

        Raises `PromptError` unless the new prompts hold the same placeholders, in order.
        """
        inputs = {**self.inputs, **text}
        place_BS = inputs["input_ids"] == self.placeholder
        return replace(
            self, inputs=inputs, prompt_of=tuple(assign_prompts(place_BS, self.image_rows))
        )


def encode(
    model: Any, inputs: Mapping[str, Any], *, run: bool = True, signals: Collection[Signal] = (),
    rows: Sequence[int] | None = None, features: bool = True,
) -> Encoded:  # fmt: skip
    """Run the vision encoder of `model` over the pictures in `inputs`.

    `inputs` may hold `mm_encoder_outputs` in place of pixels; the site "features" and `signals` of
    its attention layers are then not to be had. With run=False the encoder is left alone and only
    the layout is found; `rows` of each entry of its output may then be told, where runs of
    placeholders do not say (pictures side by side). With features=False the projector's input is
    not kept.

    Raises `InputError` for inputs that are none of a processor's, `PictureError` for pixels that
    the encoder does not take, `PromptError` where pictures and placeholders do not fit,
    `UnsupportedError` for models without visual tokens, for videos and for prompts given as
    embeddings.
    """
    family = family_of(model)
    require_inputs(inputs)
    inputs = dict(inputs)
    refuse_unsupported(inputs)
    placeholder = int(model.config.image_token_id)
    place_BS = inputs["input_ids"] == placeholder
    given = (inputs.get("mm_encoder_outputs") or {}).get("image")
    pixels = any(inputs.get(key) is not None for key in PIXELS)
    if not pixels and given is None and not bool(place_BS.any()):
        return Encoded(inputs, family, placeholder)
    require_both(place_BS, pixels or given is not None)

    ms: dict[str, float] = {}
    output = given
    tapped: list[Tensor] = []
    heard = EncoderSignals(model, signals if run and given is None else ())
    if run and given is None:
        with timed(ms, "encode", inputs["input_ids"].device), heard.listening():
            output, tapped = _run_tapped(model, family, inputs, features)
    items, of_images = _row_counts(family, place_BS, output, rows)
    prompt_of = assign_prompts(place_BS, of_images)
    packings = family.pack(model, inputs, of_images)
    if [len(packing.origin_N) for packing in packings] != of_images:
        packings = [one_to_one(count, None, 1, place_BS.device) for count in of_images]
        tapped = []
    cropped = crop_features(model, family, inputs, tapped, packings)
    return Encoded(
        inputs, family, placeholder, tuple(packings), tuple(prompt_of), tuple(items), output,
        cropped, ms, signals=heard.by_picture(family, inputs, packings),
    )  # fmt: skip


def refuse_unsupported(inputs: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` for prompts given as embeddings and for videos."""
    if inputs.get("input_ids") is None:
        raise UnsupportedError(
            "Expected `input_ids` with image placeholders. Got none (prompts given as "
            "`inputs_embeds` are not supported). Pass what the model's processor returns."
        )
    if inputs.get("pixel_values_videos") is not None or (
        (inputs.get("mm_encoder_outputs") or {}).get("video") is not None
    ):
        raise UnsupportedError(
            "Expected pictures. Got a video, which is not supported yet. Pass its frames as "
            "pictures, or call the model outside the sieve."
        )


def require_both(place_BS: Bool[Tensor, "B S"], pictures: bool) -> None:
    """Raise `PromptError` for placeholders without pictures, or the other way round."""
    if not pictures:
        raise PromptError(
            f"Expected a picture for the {int(place_BS.sum())} image placeholders in the prompt. "
            "Got none. Pass the picture to the processor together with the text."
        )
    if not bool(place_BS.any()):
        raise PromptError(
            "Expected an image placeholder in the prompt, such as '<image>'. Got a picture but no "
            "placeholder. Build the prompt with the processor's chat template."
        )


def assign_prompts(place_BS: Bool[Tensor, "B S"], rows: Sequence[int]) -> list[int]:
    """The prompt each picture of `rows` rows belongs to.

    Raises `PromptError` where placeholders and rows differ in number or order.
    """
    left, prompt, owner = place_BS.sum(-1).tolist(), 0, []
    for count in rows:
        while prompt < len(left) and left[prompt] == 0:
            prompt += 1
        if prompt == len(left) or left[prompt] < count:
            break
        left[prompt] -= count
        owner.append(prompt)
    if len(owner) < len(rows) or any(left):
        raise PromptError(
            f"Expected as many image placeholders as visual tokens, {sum(rows)} for "
            f"{len(rows)} picture(s). Got {int(place_BS.sum())} in {len(place_BS)} prompt(s). "
            "Pass all pictures and texts to the processor in one call, without truncation."
        )
    return owner


def _runs(place_BS: Bool[Tensor, "B S"]) -> list[int]:
    """Lengths of the runs of placeholders, in order."""
    return [
        sum(1 for _ in run)
        for row in place_BS.tolist()
        for is_place, run in groupby(row)
        if is_place
    ]


def _row_counts(
    family: Family, place_BS: Bool[Tensor, "B S"], output: Any, told: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Rows of each entry of the encoder's output, and of each picture.

    Without an output they are those `told`, or else what the runs of placeholders say.
    """
    runs = _runs(place_BS) if family.split_runs or output is None else []
    if output is not None:
        items = [len(item.reshape(-1, item.shape[-1])) for item in output.pooler_output]
    else:
        items = list(told) if told is not None else runs
    return items, runs if family.split_runs and sum(runs) == sum(items) else items


def _run_tapped(
    model: Any, family: Family, inputs: Mapping[str, Any], wanted: bool
) -> tuple[Any, list[Tensor]]:
    """The encoder's output as `generate` would compute it, and the projector's inputs if wanted."""
    encoder = model.base_model.get_image_features
    arguments = {
        key: inputs[key]
        for key in inspect.signature(encoder).parameters
        if key != "kwargs" and inputs.get(key) is not None
    }
    tapped: list[Tensor] = []

    def tap(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tapped.append(args[0] if args else next(iter(kwargs.values())))

    module = projector_of(model, family) if wanted else None
    hooked = acting({} if module is None else {Point(module, When.BEFORE): tap})
    own = at_hand([model.base_model])  # its own weights too, for it is not run whole
    with own, hooked, encoding(inputs, getattr(model.config, "vision_config", None)):
        return encoder(**arguments, return_dict=True), tapped
