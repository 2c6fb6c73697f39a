"""What part of a picture the kept tokens show, by the pixel.

H, W pixels of the picture; N boxes, (left, top, right, bottom) each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from tokensieve.errors import UnsupportedError
from tokensieve.hf.report import ImageReport
from tokensieve.viz.compare import crop_masks
from tokensieve.viz.geometry import Box, crop_boxes, whole_first
from tokensieve.viz.overlay import KEPT_CODE, MERGED_CODE, CropMask, token_map

Pixels = NDArray[np.bool_]
Region = Sequence[Box]


def masks_of(
    processor: Any, size: tuple[int, int], images: Sequence[ImageReport]
) -> list[CropMask]:
    """What became of the crops of one picture of `size` (width, height), the view of the whole left
    out where tiles show it finer. Where a model takes every tile for a picture of its own, `images`
    are those of all tiles.

    Raises `UnsupportedError` where it is not known which part of the picture a token shows.
    """
    boxes = crop_boxes(processor.image_processor, size)
    crops = tuple(crop for image in images for crop in image.crops)
    masks = crop_masks(boxes, ImageReport(0, 0, 0, crops))
    if len(masks) == 1:
        return masks
    return [masks[number] for number in whole_first(boxes, size)[1]]


def pixels_of(size: tuple[int, int], masks: Sequence[CropMask], *, merged: bool = False) -> Pixels:
    """(H, W) which pixels lie under a kept token, or, with `merged`, under one that lives on in
    another too."""
    seen_HW = np.zeros((size[1], size[0]), dtype=bool)
    for mask in masks:
        stays = (mask.fate == KEPT_CODE) | (merged & (mask.fate == MERGED_CODE))
        tokens_HW = token_map(size, mask.box, mask.grid)
        seen_HW |= stays[np.maximum(tokens_HW, 0)] & (tokens_HW >= 0)
    return seen_HW


def shares(seen_HW: Pixels, boxes: ArrayLike) -> NDArray[np.float64]:
    """(N,) share of each box's pixels that is seen; NaN for a box that holds no pixel."""
    height, width = seen_HW.shape
    sums = np.pad(seen_HW.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    edges = np.rint(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)).astype(np.int64)
    left, top, right, bottom = edges.clip(0, [width, height, width, height]).T
    area = (right - left).clip(0) * (bottom - top).clip(0)
    found = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return np.where(area > 0, found / np.maximum(area, 1), np.nan)


def region_seen(
    processor: Any, picture: Image.Image, images: Sequence[ImageReport], regions: Sequence[Region]
) -> tuple[float, float] | None:
    """Of the region that is seen best the share under kept tokens, and the same with those that
    live on in others; None where it is not known which part of the picture a token shows."""
    try:
        masks = masks_of(processor, picture.size, images)
    except UnsupportedError:
        return None
    own, all_ = (pixels_of(picture.size, masks, merged=merged) for merged in (False, True))
    inside = [boxes_mask(picture.size, boxes) for boxes in regions]
    found = [(float(own[one].mean()), float(all_[one].mean())) for one in inside if one.any()]
    return max(found, default=None)


def boxes_mask(size: tuple[int, int], boxes: Sequence[Box] | Sequence[ArrayLike]) -> Pixels:
    """(H, W) which pixels lie in any of the boxes."""
    inside_HW = np.zeros((size[1], size[0]), dtype=bool)
    for box in boxes:
        left, top, right, bottom = np.rint(np.asarray(box, dtype=np.float64)).astype(int).clip(0)
        inside_HW[top:bottom, left:right] = True
    return inside_HW


def ground(page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colour of the paper: the median of all pixels, channel by channel."""
    return np.asarray(np.median(page.reshape(-1, 3), axis=0).astype(np.uint8))


def painted(page: NDArray[np.uint8], kept: Pixels) -> NDArray[np.uint8]:
    """The page with what is not kept in the paper's colour; `kept` may be larger than the page."""
    height, width = page.shape[:2]
    return np.where(kept[:height, :width, None], page, ground(page)).astype(np.uint8)


def shrunk(page: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The page made as small as `size` (height, width), and enlarged again, for an engine to read
    type of one size."""
    whole, small = (page.shape[1], page.shape[0]), (size[1], size[0])
    less = Image.fromarray(page).resize(small, Image.Resampling.LANCZOS)
    return np.asarray(less.resize(whole, Image.Resampling.BICUBIC))
