"""The vision encoder, run once: what it gave, and how that lies in the prompts.

B prompts, S prompt length, N rows of a picture, n crops of it, L tokens of a crop, C width.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.attention.signals import EncoderSignals
from tokensieve.hf.encoder.kinds import CONSUMED as CONSUMED
from tokensieve.hf.encoder.kinds import (
    KEPT_OF_VIDEO,
    left_of_video,
    mixed_output,
    pixels_of,
    places_in_order,
    runs_of,
    seen_as,
    told_by_grid,
)
from tokensieve.hf.families.layout import Packing, one_to_one
from tokensieve.hf.families.table import (
    FAMILIES,
    Family,
    crop_features,
    family_of,
    placeholders_of,
    projector_of,
)
from tokensieve.hf.runtime.arguments import PIXELS as PIXELS
from tokensieve.hf.runtime.arguments import encoding, require_both, require_inputs, require_pixels
from tokensieve.hf.runtime.devices import at_hand
from tokensieve.hf.runtime.hooks import Point, When, acting
from tokensieve.hf.runtime.timing import timed
from tokensieve.types import Signal


@dataclass(frozen=True)
class Encoded:
    """Prompts with their pictures encoded; `compress` takes one as often as you like.

    A video is a picture here, and its frames are the crops.

    inputs: the inputs as given. placeholder: token id of a picture's row in the prompt; video: of
    a video's, None where the family has none. kinds: "image" or "video" of each picture.
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
    video: int | None = None
    kinds: tuple[str, ...] = ()

    @property
    def places(self) -> Bool[Tensor, "B S"]:
        """Where visual rows stand in the prompts."""
        ids = self.inputs["input_ids"]
        place_BS: Tensor = ids == self.placeholder
        return place_BS if self.video is None else place_BS | (ids == self.video)

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
        new = replace(self, inputs={**self.inputs, **text})
        return replace(new, prompt_of=tuple(assign_prompts(new.places, self.image_rows)))


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
    `UnsupportedError` for models without visual tokens, for videos of a family whose videos are
    not known and for prompts given as embeddings.
    """
    family = family_of(model)
    require_inputs(inputs)
    inputs = dict(inputs)
    refuse_unsupported(model, inputs)
    ids, tokens = inputs["input_ids"], placeholders_of(model)
    given = inputs.get("mm_encoder_outputs") or {}
    parts = {}
    for kind, token in tokens.items():
        pixels, place_BS = pixels_of(inputs, kind), ids == token
        if not pixels and given.get(kind) is None and not bool(place_BS.any()):
            continue
        require_both(place_BS, pixels or given.get(kind) is not None, kind)
        part = Encoded(seen_as(inputs, kind), family, token, output=given.get(kind), kinds=(kind,))
        parts[kind] = _encoded(model, part, inputs, run, signals, rows, features)
    whole = Encoded(inputs, family, tokens["image"], video=tokens.get("video"))
    return _together(whole, parts) if parts else whole


def _encoded(
    model: Any, part: Encoded, inputs: Mapping[str, Any], run: bool,
    signals: Collection[Signal], rows: Sequence[int] | None, features: bool,
) -> Encoded:  # fmt: skip
    """Pictures, or videos, encoded. part: with inputs told as of pictures; inputs: as given."""
    family, view, output, kind = part.family, part.inputs, part.output, part.kinds[0]
    place_BS, ms, tapped = view["input_ids"] == part.placeholder, dict[str, float](), list[Tensor]()
    heard = EncoderSignals(model, signals if run and output is None else ())
    if run and output is None:
        asked = getattr(model, "asking", nullcontext)(inputs)  # some projectors read the question
        with asked, timed(ms, "encode", place_BS.device), heard.listening():
            output, tapped = _run_tapped(model, family, inputs, kind, features)
    elif output is None and kind == "video" and family.frames is not None:
        rows = told_by_grid(model, view)
    pack = family.pack
    if kind == "video" and family.frames is not None:
        pack, output = family.frames, left_of_video(output, view.get(KEPT_OF_VIDEO))
    split = family.split_runs if kind == "image" else family.video_runs
    items, of_images = _row_counts(split, place_BS, output, rows)
    prompt_of = assign_prompts(place_BS, of_images, kind)
    packings = pack(model, view, of_images)
    if [len(packing.origin_N) for packing in packings] != of_images:
        packings = [one_to_one(count, None, 1, place_BS.device) for count in of_images]
        tapped = []
    cropped = crop_features(model, family, view, tapped, packings)
    return replace(
        part, packings=tuple(packings), prompt_of=tuple(prompt_of), item_rows=tuple(items),
        output=output, features=cropped, ms=ms,
        signals=heard.by_picture(family, view, packings), kinds=(kind,) * len(packings),
    )  # fmt: skip


def _together(whole: Encoded, parts: Mapping[str, Encoded]) -> Encoded:
    """All kinds in the order of the prompts."""
    if list(parts) == ["image"]:
        return replace(parts["image"], inputs=whole.inputs, video=whole.video)
    ids = whole.inputs["input_ids"]
    places = {kind: ids == part.placeholder for kind, part in parts.items()}

    def sizes(part: Encoded) -> list[int]:
        return [len(packing.origin_N) for packing in part.packings]

    order = places_in_order(places, {kind: sizes(part) for kind, part in parts.items()})
    items = places_in_order(places, {kind: part.item_rows for kind, part in parts.items()})
    all_ = parts.values()
    outputs = {kind: part.output for kind, part in parts.items()}
    stages = dict.fromkeys(stage for part in all_ for stage in part.ms)
    ms = {stage: sum(part.ms.get(stage, 0.0) for part in all_) for stage in stages}
    features = {kind: part.features for kind, part in parts.items()}
    told = [signal for signal in next(iter(all_)).signals if all(signal in p.signals for p in all_)]
    return replace(
        whole,
        packings=tuple(parts[kind].packings[i] for kind, i in order),
        prompt_of=tuple(parts[kind].prompt_of[i] for kind, i in order),
        item_rows=tuple(parts[kind].item_rows[i] for kind, i in items),
        output=None if None in outputs.values() else mixed_output(outputs, items),
        features=None
        if None in features.values()
        else tuple((features[kind] or ())[i] for kind, i in order),
        ms=ms,
        signals={s: tuple(parts[kind].signals[s][i] for kind, i in order) for s in told},
        kinds=tuple(kind for kind, _ in order),
    )


def refuse_unsupported(model: Any, inputs: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` for prompts given as embeddings, and for videos of a family that is
    not known to take them."""
    if inputs.get("input_ids") is None:
        raise UnsupportedError(
            "Expected `input_ids` with image placeholders. Got none (prompts given as "
            "`inputs_embeds` are not supported). Pass what the model's processor returns."
        )
    if family_of(model).frames is None and (
        pixels_of(inputs, "video") or (inputs.get("mm_encoder_outputs") or {}).get("video")
    ):
        known = ", ".join(name for name, row in FAMILIES.items() if row.frames is not None)
        raise UnsupportedError(
            f"Expected pictures, or a video for a family that has videos ({known}). Got a video "
            f"for '{model.config.model_type}'. Pass its frames as pictures, or call the model "
            "outside the sieve."
        )


def assign_prompts(
    place_BS: Bool[Tensor, "B S"], rows: Sequence[int], kind: str = "image"
) -> list[int]:
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
            f"Expected as many {kind} placeholders as visual tokens, {sum(rows)} for {len(rows)} "
            f"{'picture' if kind == 'image' else 'video'}(s). Got {int(place_BS.sum())} in "
            f"{len(place_BS)} prompt(s). Pass all pictures and texts to the processor in one "
            "call, without truncation."
        )
    return owner


def _row_counts(
    split: bool, place_BS: Bool[Tensor, "B S"], output: Any, told: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Rows of each entry of the encoder's output, and of each picture.

    split: runs of placeholders are the pictures. Without an output they are those `told`, or else
    what the runs say.
    """
    runs = runs_of(place_BS) if split or output is None else []
    if output is not None:
        items = [len(item.reshape(-1, item.shape[-1])) for item in output.pooler_output]
    else:
        items = list(told) if told is not None else runs
    return items, runs if split and sum(runs) == sum(items) else items


def _run_tapped(
    model: Any, family: Family, inputs: Mapping[str, Any], kind: str, wanted: bool
) -> tuple[Any, list[Tensor]]:
    """The encoder's output as `generate` would compute it, and the projector's inputs if wanted."""
    encoder = getattr(model.base_model, f"get_{kind}_features")
    arguments = {
        key: inputs[key]
        for key in inspect.signature(encoder).parameters
        if key != "kwargs" and inputs.get(key) is not None
    }
    require_pixels(model, encoder, arguments)
    tapped: list[Tensor] = []

    def tap(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tapped.append(args[0] if args else next(iter(kwargs.values())))

    module = projector_of(model, family) if wanted else None
    hooked = acting({} if module is None else {Point(module, When.BEFORE): tap})
    own = at_hand([model.base_model])  # its own weights too, for it is not run whole
    with own, hooked, encoding(inputs, getattr(model.config, "vision_config", None)):
        output = encoder(**arguments, return_dict=True)
    if output.get("pooler_output") is None:
        raise UnsupportedError(
            f"Expected the rows of {type(model).__name__}'s pictures in `pooler_output`. Got an "
            f"output of {', '.join(output)}. Call this model outside the sieve."
        )
    return output, tapped
