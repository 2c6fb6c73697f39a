"""The sheet that shows what each method kept of a picture, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tokensieve.errors import UnsupportedError
from tokensieve.hf.report import CropReport, ImageReport
from tokensieve.viz.geometry import Box, crop_boxes, whole_first
from tokensieve.viz.overlay import CropMask, dim, enlarge
from tokensieve.viz.sheet import Panel

SHOWN = 384  # pixels a small picture is enlarged to


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
