"""What was kept of a receipt: dropped tokens dimmed, methods side by side.

T crops, L tokens of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lab.studies.receipts.tiles import Receipt, Tiling, covered
from tokensieve.files import make_folder, written_whole

_CAPTION = 14


def save_overlay(path: Path, receipt: Receipt, tiling: Tiling, kept: Mapping[str, Tensor]) -> None:
    """Write one strip: the receipt, then under each name the receipt as its (T, L) mask left it."""
    page = stitch(receipt.crops[int(tiling.base) :], receipt.layout)
    height, width = receipt.size
    views = {receipt.name: page[:height, :width]}
    for name, mask_TL in kept.items():
        views[name] = dim(page, mask_TL, receipt.layout, tiling)[:height, :width]
    strip = Image.new("RGB", ((width + 4) * len(views), height + _CAPTION), "white")
    draw = ImageDraw.Draw(strip)
    for place, (name, view) in enumerate(views.items()):
        strip.paste(Image.fromarray(view), (place * (width + 4), _CAPTION))
        draw.text((place * (width + 4) + 2, 1), name, fill="black")
    make_folder(path.parent)
    with written_whole(path) as part:
        strip.save(part)


def stitch(crops: NDArray[np.uint8], layout: tuple[int, int]) -> NDArray[np.uint8]:
    """(T, S, S, 3) crops, row-major over `layout`, as one page."""
    rows, columns = layout
    side = crops.shape[1]
    grid = crops.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return grid.reshape(rows * side, columns * side, 3)


def dim(
    page: NDArray[np.uint8], kept: Tensor, layout: tuple[int, int], tiling: Tiling
) -> NDArray[np.uint8]:
    """The page with dropped tokens at a quarter of their brightness."""
    pixels = covered(kept, layout, tiling)[..., None]
    return np.where(pixels, page, page // 4).astype(np.uint8)
