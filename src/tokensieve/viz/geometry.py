"""Where each crop of a processor lies in the original picture.

A box is (left, top, right, bottom) in pixels of the original picture, fractions and margins beyond
its edges included; a crop's tokens divide its box evenly.
"""

from __future__ import annotations

from typing import Any

from tokensieve.errors import UnsupportedError

Box = tuple[float, float, float, float]


def crop_boxes(image_processor: Any, size: tuple[int, int]) -> list[Box]:
    """Boxes of the crops `image_processor` makes of a picture of `size` (width, height), in order.

    Knows four ways: a resize of the whole (Qwen, SigLIP), short side to length and centre crop
    (CLIP), padding to a square first (LLaVA), and base view plus tiles (LLaVA-NeXT).

    Raises `UnsupportedError` for a processor that cuts pictures in another way.
    """
    if hasattr(image_processor, "image_grid_pinpoints"):
        return [_whole(size), *_tiles(image_processor, size)]
    if getattr(image_processor, "do_image_splitting", False) or getattr(
        image_processor, "crop_to_patches", False
    ):
        raise UnsupportedError(
            f"Expected a processor of known crops. Got {type(image_processor).__name__}. "
            "Switch its splitting off to draw overlays."
        )
    box = _whole(size)
    if getattr(image_processor, "do_pad", False) and not getattr(image_processor, "pad_size", None):
        box = _padded_square(size)
    if getattr(image_processor, "do_center_crop", False):
        box = _centre(box, image_processor)
    return [box]


def _whole(size: tuple[int, int]) -> Box:
    return (0.0, 0.0, float(size[0]), float(size[1]))


def _padded_square(size: tuple[int, int]) -> Box:
    """The square of the longer side around the picture, as LLaVA's own processor pads."""
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    return (float(-left), float(-top), float(side - left), float(side - top))


def _centre(box: Box, image_processor: Any) -> Box:
    """What is left of `box` after the resize and the centre crop, in the same coordinates."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    new_width, new_height = _resized(width, height, image_processor)
    crop = image_processor.crop_size
    x = left + _offset(new_width, crop["width"]) * width / new_width
    y = top + _offset(new_height, crop["height"]) * height / new_height
    return (
        x,
        y,
        x + crop["width"] * width / new_width,
        y + crop["height"] * height / new_height,
    )


def _offset(have: int, want: int) -> int:
    """Where a centre crop of `want` begins in `have` pixels (below 0: padding is added)."""
    return (have - want) // 2 if have >= want else -((want - have + 1) // 2)


def _resized(width: float, height: float, image_processor: Any) -> tuple[int, int]:
    size = image_processor.size
    if not getattr(image_processor, "do_resize", True):
        return int(width), int(height)
    short = size.get("shortest_edge") if hasattr(size, "get") else size.shortest_edge
    if short is None:
        return int(size["width"]), int(size["height"])
    if width <= height:
        return int(short), int(short * height / width)
    return int(short * width / height), int(short)


def _tiles(image_processor: Any, size: tuple[int, int]) -> list[Box]:
    """Tiles of the best pinpoint resolution, row by row; the picture is centred and padded."""
    from transformers.image_processing_utils import select_best_resolution

    width, height = size
    pinpoints = [list(point) for point in image_processor.image_grid_pinpoints]
    full_height, full_width = select_best_resolution((height, width), pinpoints)
    across, down = full_width / width, full_height / height
    if across < down:
        inner = (full_width, min(-int(-height * across // 1), full_height))
    else:
        inner = (min(-int(-width * down // 1), full_width), full_height)
    left, top = (full_width - inner[0]) // 2, (full_height - inner[1]) // 2
    per_x, per_y = width / inner[0], height / inner[1]
    crop = image_processor.crop_size
    return [
        (
            (x - left) * per_x,
            (y - top) * per_y,
            (x + crop["width"] - left) * per_x,
            (y + crop["height"] - top) * per_y,
        )
        for y in range(0, full_height, crop["height"])
        for x in range(0, full_width, crop["width"])
    ]
