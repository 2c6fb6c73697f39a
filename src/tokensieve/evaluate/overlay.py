"""The picture of what each method kept, beside its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.data.sources.clips import Video
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.evaluate.answer import Answer, Refused
from tokensieve.evaluate.pictures import picture_path
from tokensieve.evaluate.prepare import Pictures, listed, prepared
from tokensieve.files import written_whole
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.layout import Packing
from tokensieve.hf.models.loaded import Loaded
from tokensieve.viz.compare import FRAME, Shown, contact_rows, frame_columns, overlay_rows
from tokensieve.viz.geometry import crop_boxes, frame_crops
from tokensieve.viz.sheet import Panel, check_picture_path, pages_alike, sheet

_LEAVE_OUT = "Leave --overlay out."
_MOVING = (".gif", ".webp")
SHOWN_FOR = 700  # milliseconds of a frame


def check_overlay_path(path: Path, names: Sequence[str], videos: Sequence[str] = ()) -> None:
    """Raise `ConfigError` unless a picture, of videos an animation too, may be written to `path`
    and it is none of those, nor in a folder of frames."""
    for folder in (Path(name).expanduser().resolve() for name in videos):
        if folder.is_dir() and folder in path.resolve().parents:
            raise ConfigError(
                f"Expected an overlay outside {folder}, whose pictures are the frames. Got {path}. "
                "Name a file elsewhere."
            )
    for source in [*map(picture_path, names), *(Path(name).expanduser() for name in videos)]:
        check_picture_path(path, source=source, moving=bool(videos))


def check_overlay(loaded: Loaded, pictures: Pictures, question: str) -> None:
    """Raise `UnsupportedError`, before anything is asked, where it is not known what part of a
    picture each token shows; and what `prepared` raises."""
    for one in listed(pictures):
        inputs = prepared(loaded, one, question)
        if isinstance(one, Video):
            wanted = _crops_of_video(loaded.processor, one)
            packings = encode(loaded.model, inputs, run=False).packings
            if any(packing.grid is None for packing in packings):
                packings = encode(loaded.model, inputs).packings  # only its output says where
        else:
            wanted = len(crop_boxes(loaded.processor.image_processor, one.size))
            packings = _of_tiles(loaded, inputs, wanted)
        crops = sum(packing.crops for packing in packings)
        if any(packing.grid is None for packing in packings):
            raise UnsupportedError(
                f"Expected tokens that each show a place, for an overlay. Got '{loaded.name}', "
                f"whose tokens lie on no grid. {_LEAVE_OUT}"
            )
        if crops != wanted:
            raise UnsupportedError(
                f"Expected {wanted} crops of a picture, by the processor's settings, for an "
                f"overlay. Got {crops}. {_LEAVE_OUT}"
            )


def _crops_of_video(processor: Any, video: Video) -> int:
    return len(frame_crops(processor, video.frames[0].size, len(video.frames))[1])


def _of_tiles(loaded: Loaded, inputs: Any, tiles: int) -> tuple[Packing, ...]:
    """How a picture lies in a prompt; tiles: how many crops its processor makes of it."""
    packings = encode(loaded.model, inputs, run=False).packings
    each, rest = divmod(sum(len(packing.origin_N) for packing in packings), tiles)
    if len(packings) == 1 < tiles != packings[0].crops and not rest:
        # InternVL: tiles side by side, which its encoder gives one by one
        packings = encode(loaded.model, inputs, run=False, rows=[each] * tiles).packings
    return packings


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
    picture or several, as they were asked about. Of a video a contact sheet, or an animation where
    `path` is a .gif or .webp.

    Raises `UnsupportedError` for a processor of unknown crops, `ConfigError` for the path.
    """
    given = [one for one in answers if isinstance(one, Answer)]
    rows: list[list[Panel]] = []
    films: list[tuple[list[list[Panel]], list[Shown]]] = []
    at, several = 0, listed(pictures)
    for one in several:
        if isinstance(one, Video):
            end = at + _crops_of_video(processor, one)
            panels = [shown(answer, slice(at, end)) for answer in given]
            films.append((frame_columns(processor, one.frames, one.seconds, panels), panels))
        else:
            alone = len(several) == 1
            end = at + len(crop_boxes(processor.image_processor, one.size, alone=alone))
            panels = [shown(answer, slice(at, end)) for answer in given]
            rows += overlay_rows(processor, one, panels, alone=alone)
        at = end
    pages = _pages(rows, films, question, moving=path.suffix.lower() in _MOVING)
    more: dict[str, Any] = {"append_images": pages[1:], "duration": SHOWN_FOR, "loop": 0}
    with written_whole(path) as part:
        pages[0].save(part, save_all=bool(pages[1:]), **more)


def _pages(
    rows: list[list[Panel]], films: Sequence[tuple[list[list[Panel]], list[Shown]]], heading: str,
    *, moving: bool,
) -> list[Image.Image]:  # fmt: skip
    """One sheet of everything; moving: one for every frame, on paper of one size."""
    if not films:
        return [sheet(rows, heading=heading)]
    if not moving:
        contact = [row for columns, panels in films for row in contact_rows(columns, panels)]
        return [sheet([*rows, *contact], heading=heading, width=FRAME)]
    longest = max(len(columns) for columns, _ in films)
    made = []
    for t in range(longest):
        now = []
        for columns, panels in films:
            first, *others = columns[min(t, len(columns) - 1)]
            told = [replace(p, lines=p.lines + one.lines) for p, one in zip(
                others, panels, strict=True)]  # fmt: skip
            now.append([first, *told])
        made.append(sheet([*rows, *now], heading=heading))
    return pages_alike(made)
