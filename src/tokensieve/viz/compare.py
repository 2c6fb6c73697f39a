"""The sheet that shows what each method kept of a picture, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from tokensieve.errors import UnsupportedError
from tokensieve.hf.report import CropReport, ImageReport
from tokensieve.viz.geometry import Box, crop_boxes, frame_crops, whole_first
from tokensieve.viz.overlay import CropMask, dim, enlarge
from tokensieve.viz.sheet import Panel

SHOWN = 384  # pixels a small picture is enlarged to
FRAME, ACROSS = 224, 8  # pixels of a frame on a contact sheet, and frames of a row


@dataclass(frozen=True)
class Shown:
    """One method's panel: its name, the lines under it, and what it kept (None: no picture)."""

    name: str
    lines: tuple[str, ...]
    image: ImageReport | None


def overlay_rows(
    processor: Any, picture: Image.Image, shown: Sequence[Shown], *, alone: bool = True
) -> list[list[Panel]]:
    """`picture` once as it is, then once a method with what it dropped dimmed: one row.

    Where a processor makes a base view and tiles, each has a row of its own. alone: as of
    `crop_boxes`. Raises `UnsupportedError` for a processor whose crops are not known.
    """
    boxes = crop_boxes(processor.image_processor, picture.size, alone=alone)
    views = {"whole picture": [0]}
    if len(boxes) > 1:
        base, tiles = whole_first(boxes, picture.size)
        views = {"whole picture": [base], f"{len(tiles)} tiles": tiles}
    plain, _ = enlarge(picture, [], SHOWN)
    rows = []
    for view, part in views.items():
        note = (view,) if len(views) > 1 else ()
        row = [Panel(plain, "picture", note)]
        for one in shown:
            every = crop_masks(boxes, one.image) if one.image else []
            masks = [every[i] for i in part] if every else []
            row.append(Panel(dim(*enlarge(picture, masks, SHOWN)), one.name, one.lines + note))
        rows.append(row)
    return rows


def frame_columns(
    processor: Any, frames: Sequence[Image.Image], seconds: Sequence[float], shown: Sequence[Shown]
) -> list[list[Panel]]:
    """Of each crop of a video its frame as it is, then once a method with what it dropped dimmed.

    seconds: when each frame was. Raises `UnsupportedError` as `overlay_rows` does.
    """
    box, firsts = frame_crops(processor, frames[0].size, len(frames))
    masks = [crop_masks([box] * len(firsts), one.image) if one.image else [] for one in shown]
    columns = []
    for number, first in enumerate(firsts):
        picture, time = frames[first], f"{seconds[first]:.1f} s"
        column = [Panel(enlarge(picture, [], SHOWN)[0], f"frame {first + 1}", (time,))]
        for one, every in zip(shown, masks, strict=True):
            mask = every[number : number + 1]
            counts: tuple[str, ...] = ()
            if one.image:
                crop = one.image.crops[number]
                counts = (f"{len(crop.kept)} of {int(crop.valid.sum())} here",)
            column.append(Panel(dim(*enlarge(picture, mask, SHOWN)), one.name, counts))
        columns.append(column)
    return columns


def contact_rows(columns: Sequence[Sequence[Panel]], shown: Sequence[Shown]) -> list[list[Panel]]:
    """Frames side by side, those of each method below, its lines below the first of them."""
    rows = []
    for at in range(0, len(columns), ACROSS):
        part = [list(row) for row in zip(*columns[at : at + ACROSS], strict=True)]
        for row, one in zip(part[1:], shown, strict=True):
            row[0] = replace(row[0], lines=row[0].lines + (one.lines if not at else ()))
        rows += part
    return rows


def crop_masks(boxes: Sequence[Box], image: ImageReport) -> list[CropMask]:
    """What became of each crop's tokens, in the place of its box.

    Raises `UnsupportedError` where crops have no grid, or are not those of `boxes`.
    """
    if len(boxes) != len(image.crops):
        raise UnsupportedError(
            f"Expected {len(boxes)} crops, by the processor's settings. Got {len(image.crops)}. "
            "Overlays of this model are not known yet."
        )
    return [_mask(box, crop) for box, crop in zip(boxes, image.crops, strict=True)]


def _mask(box: Box, crop: CropReport) -> CropMask:
    if (grid := crop.grid) is None:
        raise UnsupportedError(
            "Expected tokens on a grid. Got tokens of unknown places: no overlay."
        )
    merged = [] if crop.assign is None else (crop.assign >= 0).nonzero()[:, 0].tolist()
    return CropMask.of(box, grid, crop.kept.tolist(), merged)
