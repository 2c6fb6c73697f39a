"""The picture of what each method kept, beside its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokensieve.errors import UnsupportedError
from tokensieve.evaluate.answer import Answer, Refused
from tokensieve.evaluate.ask import Pictures, listed, prepared
from tokensieve.evaluate.pictures import picture_path
from tokensieve.files import written_whole
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.models.loaded import Loaded
from tokensieve.viz.compare import Shown, overlay_rows
from tokensieve.viz.geometry import crop_boxes
from tokensieve.viz.sheet import check_picture_path, sheet

_LEAVE_OUT = "Leave --overlay out."


def check_overlay_path(path: Path, names: Sequence[str]) -> None:
    """Raise `ConfigError` unless a picture may be written to `path` and it is none of those."""
    for name in names:
        check_picture_path(path, source=picture_path(name))


def check_overlay(loaded: Loaded, pictures: Pictures, question: str) -> None:
    """Raise `UnsupportedError`, before anything is asked, where it is not known what part of a
    picture each token shows; and what `prepared` raises."""
    for picture in listed(pictures):
        inputs = prepared(loaded, picture, question)
        boxes = crop_boxes(loaded.processor.image_processor, picture.size)
        packings = encode(loaded.model, inputs, run=False).packings
        each, rest = divmod(sum(len(packing.origin_N) for packing in packings), len(boxes))
        if len(packings) == 1 < len(boxes) != packings[0].crops and not rest:
            # InternVL: tiles side by side, which its encoder gives one by one
            rows = [each] * len(boxes)
            packings = encode(loaded.model, inputs, run=False, rows=rows).packings
        crops = sum(packing.crops for packing in packings)
        if any(packing.grid is None for packing in packings):
            raise UnsupportedError(
                f"Expected tokens that each show a place, for an overlay. Got '{loaded.name}', "
                f"whose tokens lie on no grid. {_LEAVE_OUT}"
            )
        if crops != len(boxes):
            raise UnsupportedError(
                f"Expected {len(boxes)} crops of a picture, by the processor's settings, for an "
                f"overlay. Got {crops}. {_LEAVE_OUT}"
            )


def shown(answer: Answer, crops: slice = slice(None)) -> Shown:
    """The panel of `answer` on an overlay sheet, of the picture whose crops those are among all.

    Where a model takes every tile for a picture of its own, several images of a report are one."""
    tokens = f"{answer.kept_tokens} of {answer.visual_tokens} tokens"
    every = tuple(crop for image in answer.images for crop in image.crops)
    image = replace(answer.images[0], crops=every[crops]) if answer.images else None
    return Shown(answer.method, (tokens, f"Answer: {answer.answer or '(nothing)'}"), image)


def write_overlay(
    path: Path, processor: Any, pictures: Pictures, question: str,
    answers: Sequence[Answer | Refused],
) -> None:  # fmt: skip
    """Write a picture of what each answer's method kept to `path`, whole or not at all: of one
    picture or several, as they were asked about.

    Raises `UnsupportedError` for a processor of unknown crops, `ConfigError` for the path.
    """
    given = [one for one in answers if isinstance(one, Answer)]
    rows, at, several = [], 0, listed(pictures)
    for picture in several:
        alone = len(several) == 1
        end = at + len(crop_boxes(processor.image_processor, picture.size, alone=alone))
        panels = [shown(answer, slice(at, end)) for answer in given]
        rows += overlay_rows(processor, picture, panels, alone=alone)
        at = end
    with written_whole(path) as part:
        sheet(rows, heading=question).save(part)
