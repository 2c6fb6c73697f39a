"""A picture with its dropped tokens dimmed, exact to the pixel.

H, W pixels of the picture; a crop's tokens divide its box evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokensieve.viz.geometry import Box

DIM = 0.22  # brightness of what was dropped
MERGED = 0.55  # of what lives on inside another token
UNSEEN = (70, 74, 92)  # what the model never saw

DROPPED_CODE, MERGED_CODE, KEPT_CODE = 0, 1, 2


@dataclass(frozen=True)
class CropMask:
    """What became of one crop's tokens.

    box: where the crop lies in the picture. grid: (rows, columns).
    fate: one code a token, row-major: kept, merged into another, dropped.
    """

    box: Box
    grid: tuple[int, int]
    fate: npt.NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        box: Box,
        grid: tuple[int, int],
        kept: Sequence[int],
        merged: Sequence[int] = (),
    ) -> CropMask:
        """From the indices of kept tokens and of those merged into them."""
        fate = np.zeros(grid[0] * grid[1], dtype=np.uint8)
        fate[list(merged)] = MERGED_CODE
        fate[list(kept)] = KEPT_CODE
        return cls(box, grid, fate)


def token_map(size: tuple[int, int], box: Box, grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """(H, W) the token under the centre of every pixel of a picture of `size`; -1 outside `box`."""
    columns = _cells(size[0], box[0], box[2], grid[1])
    rows = _cells(size[1], box[1], box[3], grid[0])
    tokens_HW = rows[:, None] * grid[1] + columns[None, :]
    outside = (rows < 0)[:, None] | (columns < 0)[None, :]
    return np.where(outside, -1, tokens_HW)


def _cells(length: int, start: float, end: float, cells: int) -> npt.NDArray[np.int64]:
    centres = np.arange(length) + 0.5
    found = np.floor((centres - start) / (end - start) * cells).astype(np.int64)
    return np.where((found >= 0) & (found < cells), found, -1)


def dim(picture: Image.Image, crops: Sequence[CropMask]) -> Image.Image:
    """`picture` with dropped tokens dark, merged ones half dark and the rest of `crops` untouched.

    Pixels outside every crop, which the model never saw, are hatched. Where crops overlap, the
    better fate shows.
    """
    pixels_HWC = np.asarray(picture.convert("RGB"), dtype=np.float64)
    light_HW = np.full(pixels_HWC.shape[:2], -1.0)
    levels = np.array([DIM, MERGED, 1.0])
    for crop in crops:
        tokens_HW = token_map(picture.size, crop.box, crop.grid)
        fate_HW = levels[crop.fate[np.maximum(tokens_HW, 0)]]
        light_HW = np.maximum(light_HW, np.where(tokens_HW >= 0, fate_HW, -1.0))
    dimmed_HWC = pixels_HWC * np.maximum(light_HW, 0)[..., None]
    unseen_HW = light_HW < 0
    dimmed_HWC[unseen_HW] = _hatch(picture.size)[unseen_HW]
    return Image.fromarray(np.floor(dimmed_HWC + 0.5).astype(np.uint8))


def _hatch(size: tuple[int, int]) -> npt.NDArray[np.float64]:
    y, x = np.mgrid[: size[1], : size[0]]
    stripe = ((x + y) // 4 % 2)[..., None]
    hatched: npt.NDArray[np.float64] = np.array(UNSEEN, dtype=np.float64) * (1 + 0.35 * stripe)
    return hatched


def enlarge(
    picture: Image.Image, crops: Sequence[CropMask], at_least: int
) -> tuple[Image.Image, list[CropMask]]:
    """Both scaled by the whole number that brings the longer side to `at_least` pixels or more."""
    factor = max(1, -(-at_least // max(picture.size)))
    large = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS
    )
    left_top_right_bottom = [tuple(edge * factor for edge in crop.box) for crop in crops]
    return large, [
        CropMask((b[0], b[1], b[2], b[3]), crop.grid, crop.fate)
        for b, crop in zip(left_top_right_bottom, crops, strict=True)
    ]
