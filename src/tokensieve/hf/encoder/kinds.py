"""Pictures and videos of one call: each kind has placeholders, pixels and an encoder run.

B prompts, S prompt length, R rows of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.runtime.arguments import PIXELS, VIDEO

# what says of videos what another entry says of pictures
_AS_PICTURES = {
    "pixel_values": VIDEO,
    "image_grid_thw": "video_grid_thw",
    "image_merge_sizes": "video_merge_sizes",
}
_OF_PICTURES = (*PIXELS, *_AS_PICTURES, "image_sizes", "spatial_shapes", "batch_num_images")
KEPT_OF_VIDEO = "video_compression_mask"  # VideoLLaMA3: the rows its processor has left of a video
CONSUMED = (*PIXELS, KEPT_OF_VIDEO)  # of no use to the model once there are rows


def pixels_of(inputs: Mapping[str, Any], kind: str) -> bool:
    """Whether there are pixels of a kind."""
    names = (VIDEO,) if kind == "video" else [name for name in PIXELS if name != VIDEO]
    return any(inputs.get(name) is not None for name in names)


def seen_as(inputs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Inputs of one kind only; of videos told as if they were pictures."""
    if kind == "image":
        return {k: v for k, v in inputs.items() if k not in (VIDEO, KEPT_OF_VIDEO)}
    view = {k: v for k, v in inputs.items() if k not in _OF_PICTURES}
    for name, own in _AS_PICTURES.items():
        if inputs.get(own) is not None:
            view[name] = inputs[own]
    return view


def require_pictures(inputs: Mapping[str, Any], site: str) -> None:
    """Raise `UnsupportedError` for videos at a site before or inside the encoder."""
    given = (inputs.get("mm_encoder_outputs") or {}).get("video")
    if pixels_of(inputs, "video") or given is not None:
        raise UnsupportedError(
            f"Expected pictures for a method of the site '{site}'. Got a video. Use a method that "
            "acts on 'features', 'embeds' or 'llm', or pass the frames as pictures."
        )


@dataclass
class Mixed:
    """The encoder's outputs of several kinds as one: entries in the order of the prompts.

    kinds: of each entry; forms: of each kind its output's class, and whether that is one tensor.
    """

    pooler_output: list[Tensor]
    deepstack_features: list[Any] | None
    kinds: list[str]
    forms: dict[str, tuple[type, bool]]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def get(self, name: str) -> Any:
        """An entry by its name; None if there is none."""
        return getattr(self, name, None)


def left_of_video(output: Any, mask_R: Tensor | None) -> Any:
    """A video output without the rows that its processor has left out of the prompt."""
    if mask_R is None or output is None:
        return output
    sizes = [len(entry) for entry in output.pooler_output]
    parts = torch.split(mask_R, sizes)
    rows = [e[m.to(e.device)] for e, m in zip(output.pooler_output, parts, strict=True)]
    return type(output)(**{**dict(output), "pooler_output": rows})


def told_by_grid(model: Any, view: Mapping[str, Any]) -> list[int] | None:
    """Rows of each video where its frames stand apart in the prompt; None: the runs say it."""
    if (grids := view.get("image_grid_thw")) is None or view.get(KEPT_OF_VIDEO) is not None:
        return None
    vision = model.config.vision_config
    merge = view.get("image_merge_sizes", getattr(vision, "spatial_merge_size", 1))
    return [int(n) for n in (grids.prod(-1) // torch.as_tensor(merge).to(grids) ** 2)]


def runs_of(place_BS: Bool[Tensor, "B S"]) -> list[int]:
    """Lengths of the runs of placeholders, in order."""
    return [
        sum(1 for _ in run)
        for row in place_BS.tolist()
        for is_place, run in groupby(row)
        if is_place
    ]


def places_in_order(
    places: Mapping[str, Bool[Tensor, "B S"]], rows: Mapping[str, Sequence[int]]
) -> list[tuple[str, int]]:
    """(kind, number) of entries of so many `rows` of each kind, in the order of the prompts.

    Raises `PromptError` where rows of one stand between those of another.
    """
    found: list[tuple[list[int], str, int]] = []
    for kind, place_BS in places.items():
        at_R = place_BS.flatten().nonzero()[:, 0].tolist()
        ends = list(accumulate(rows[kind]))
        for i, (end, count) in enumerate(zip(ends, rows[kind], strict=True)):
            if count:
                found.append((at_R[end - count : end], kind, i))
    found.sort(key=lambda entry: entry[0][0])
    flat = [place for entry in found for place in entry[0]]
    if flat != sorted(flat):
        raise PromptError(
            "Expected the frames of a video one after another. Got a picture, or another video, "
            "between them. Build the prompt with the processor's chat template."
        )
    return [(kind, i) for _, kind, i in found]


def mixed_output(outputs: Mapping[str, Any], order: Sequence[tuple[str, int]]) -> Mixed:
    """Outputs of each kind put into `order`."""
    layers: list[Any] | None = None
    deep = {kind: output.get("deepstack_features") for kind, output in outputs.items()}
    if all(features is not None for features in deep.values()):
        layers = []
        for of_kinds in zip(*deep.values(), strict=True):
            layer = dict(zip(deep, of_kinds, strict=True))
            tag = next((one[0] for one in layer.values() if not isinstance(one[0], Tensor)), None)
            plain = {k: one if isinstance(one[0], Tensor) else one[1] for k, one in layer.items()}
            entries = tuple(plain[kind][i] for kind, i in order)
            layers.append(entries if tag is None else (tag, entries))
    return Mixed(
        [outputs[kind].pooler_output[i] for kind, i in order],
        layers,
        [kind for kind, _ in order],
        {k: (type(o), isinstance(o.pooler_output, Tensor)) for k, o in outputs.items()},
    )
