"""Where each crop of a processor lies in the original picture.

A box is (left, top, right, bottom) in pixels of the original picture, fractions and margins beyond
its edges included; a crop's tokens divide its box evenly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokensieve.errors import UnsupportedError

Box = tuple[float, float, float, float]

# what processors call their ways of cutting a picture, of which each class has its own
_CUTS = (
    "do_image_splitting", "crop_to_patches", "do_pan_and_scan", "split_image", "slice_mode",
    "do_tiling", "max_slice_nums", "do_crop_to_tiles",
)  # fmt: skip
_LARGEST = 4096  # pixels to which Idefics3 limits a side


def crop_boxes(image_processor: Any, size: tuple[int, int], *, alone: bool = True) -> list[Box]:
    """Boxes of the crops `image_processor` makes of a picture of `size` (width, height), in order.

    Knows a resize of the whole (Qwen, SigLIP, Pixtral), short side to length and centre crop
    (CLIP), padding to a square first (LLaVA), base view plus tiles (LLaVA-NeXT, OneVision), tiles
    plus the whole (InternVL, Idefics3, SmolVLM), and the whole plus pan-and-scan (Gemma 3).

    alone: no other picture stands in the prompt; beside others OneVision pads it to a square.

    Raises `UnsupportedError` for a processor that cuts pictures in another way.
    """
    pads = hasattr(image_processor, "pad_to_square")
    if getattr(image_processor, "image_grid_pinpoints", None):
        if pads and not alone:
            return [_padded_square(size)]
        return [_whole(size), *_tiles(image_processor, size)]
    cuts = [name for name in _CUTS if getattr(image_processor, name, None)]
    if cuts:
        return _cut(image_processor, size, cuts[0])
    box = _whole(size)
    if pads and getattr(image_processor, "do_pad", False):
        box = _padded_square(size)
    if getattr(image_processor, "do_center_crop", False):
        box = _centre(box, image_processor)
    return [box]


def frame_crops(processor: Any, size: tuple[int, int], frames: int) -> tuple[Box, list[int]]:
    """The box of a video's frames of `size`, and of each crop a model makes of `frames` of them the
    number of the first: Qwen's steps in time are two frames each.

    Raises `UnsupportedError` for frames that are cut into several crops.
    """
    videos = processor.video_processor
    boxes = crop_boxes(videos, size)
    if len(boxes) > 1:
        raise UnsupportedError(
            f"Expected one crop of each frame. Got {len(boxes)}: no overlay of such videos."
        )
    return boxes[0], list(range(0, frames, int(getattr(videos, "temporal_patch_size", None) or 1)))


def whole_first(boxes: list[Box], size: tuple[int, int]) -> tuple[int, list[int]]:
    """Of several crops the number of the one that shows the whole picture, and those of the others.

    Raises `UnsupportedError` where none does.
    """
    if _whole(size) not in boxes:
        raise UnsupportedError(
            f"Expected a crop that shows the whole picture. Got {len(boxes)} without one: no "
            "overlay."
        )
    base = boxes.index(_whole(size))
    return base, [i for i in range(len(boxes)) if i != base]


def _whole(size: tuple[int, int]) -> Box:
    return (0.0, 0.0, float(size[0]), float(size[1]))


def _cut(image_processor: Any, size: tuple[int, int], by: str) -> list[Box]:
    """Crops of processors that cut a picture stretched to a multiple of a tile, or as it is."""
    kinds = tuple(kind.__name__ for kind in type(image_processor).__mro__)
    if by == "crop_to_patches" and _named(kinds, "GotOcr2"):
        return _of_canvas(size, *_canvas(image_processor, size))
    if by == "do_image_splitting" and _named(kinds, "Idefics3", "SmolVLM"):
        return _of_canvas(size, *_split(image_processor, size))
    if by == "do_pan_and_scan" and _named(kinds, "Gemma3"):
        return [_whole(size), *_panned(image_processor, size)]
    raise UnsupportedError(
        f"Expected a processor of known crops. Got {type(image_processor).__name__}, which cuts "
        f"pictures in a way of its own ({by}). Switch its splitting off to draw overlays."
    )


def _named(kinds: tuple[str, ...], *stems: str) -> bool:
    return any(kind.startswith(f"{stem}ImageProcessor") for kind in kinds for stem in stems)


def _of_canvas(size: tuple[int, int], rows: int, columns: int) -> list[Box]:
    """Tiles that share the picture evenly, row by row, and the whole behind them if several."""
    if rows * columns < 2:
        return [_whole(size)]
    width, height = size[0] / columns, size[1] / rows
    tiles = [
        (x * width, y * height, (x + 1) * width, (y + 1) * height)
        for y in range(rows)
        for x in range(columns)
    ]
    return [*tiles, _whole(size)]


def _canvas(image_processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of InternVL's tiles."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    height, width = _tile(image_processor)
    columns, rows = get_optimal_tiled_canvas(
        (size[1], size[0]), (height, width), image_processor.min_patches,
        image_processor.max_patches,
    )  # fmt: skip
    return int(rows), int(columns)


def _split(image_processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of Idefics3's and SmolVLM's tiles: the longer side to its length, the other
    to an even number, then both up to whole tiles."""
    tile = int(image_processor.max_image_size["longest_edge"])
    longest = int(image_processor.size["longest_edge"])
    width, height = size
    if image_processor.do_resize:
        shorter = int(longest / (max(size) / min(size)))
        shorter = max(1, shorter + shorter % 2)
        width, height = (longest, shorter) if size[0] >= size[1] else (shorter, longest)
        if longest > _LARGEST:
            shorter = max(1, int(_LARGEST / (longest / shorter)))
            width, height = (_LARGEST, shorter) if width >= height else (shorter, _LARGEST)
    long, aspect = -(-max(width, height) // tile) * tile, max(width, height) / min(width, height)
    short = -(-int(long / aspect) // tile)
    rows, columns = (short, long // tile) if width >= height else (long // tile, short)
    return max(1, rows), max(1, columns)


def _panned(image_processor: Any, size: tuple[int, int]) -> list[Box]:
    """Gemma 3's crops of a long picture: found by the processor on a picture without memory."""
    width, height = size
    blank = np.broadcast_to(np.uint8(0), (3, height, width))
    crops = image_processor.pan_and_scan(
        blank, image_processor.pan_and_scan_min_crop_size,
        image_processor.pan_and_scan_max_num_crops,
        image_processor.pan_and_scan_min_ratio_to_activate,
    )  # fmt: skip
    boxes, at = [], 0
    for crop in crops:
        if width >= height:
            boxes.append((float(at), 0.0, float(at + crop.shape[-1]), float(height)))
            at += crop.shape[-1]
        else:
            boxes.append((0.0, float(at), float(width), float(at + crop.shape[-2])))
            at += crop.shape[-2]
    return boxes


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
    tall, wide = _tile(image_processor)
    return [
        (
            (x - left) * per_x,
            (y - top) * per_y,
            (x + wide - left) * per_x,
            (y + tall - top) * per_y,
        )
        for y in range(0, full_height, tall)
        for x in range(0, full_width, wide)
    ]


def _tile(image_processor: Any) -> tuple[int, int]:
    """(height, width) of a tile in pixels."""
    for size in (getattr(image_processor, "crop_size", None), image_processor.size):
        if size and size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
    side = int(image_processor.size["shortest_edge"])
    return side, side
