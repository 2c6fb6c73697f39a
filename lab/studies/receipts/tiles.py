"""A scanned receipt cut in crops at the text height an encoder was trained on.

T crops, S pixels of a crop's side, P pixels of a patch's side, L tokens of a crop.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokensieve.data.pictures.decode import check_size, open_picture
from tokensieve.errors import InputError


@dataclass(frozen=True)
class Tiling:
    """Crops of `side` pixels in patches of `patch`, text boxes `text_height` tall (median)."""

    side: int = 192
    patch: int = 12
    text_height: float = 11.0


@dataclass(frozen=True)
class Receipt:
    """One receipt, scaled and cut.

    name: the file's stem.
    crops: (T, S, S, 3) RGB bytes, row-major over `layout`, padded with the paper's colour.
    layout: (rows, columns) of crops.
    size: (height, width) of the scaled receipt without padding.
    text: (T, L) pixels of text boxes under each token.
    valid: (T, L) False where a token lies wholly in the padding.
    """

    name: str
    crops: NDArray[np.uint8]
    layout: tuple[int, int]
    size: tuple[int, int]
    text: Float[Tensor, "T L"]
    valid: Bool[Tensor, "T L"]

    def text_kept(self, kept: Bool[Tensor, "T L"]) -> float:
        """Share of the text boxes' area that lies under kept tokens."""
        return float((self.text * kept).sum() / self.text.sum())


def half_of(name: str) -> str:
    """ "val" or "test" for a receipt, by a hash of its name: fixed and without order."""
    return "val" if hashlib.sha256(name.encode()).digest()[0] % 2 == 0 else "test"


def receipt_names(folder: Path, half: str) -> list[str]:
    """Names of the receipts of one half. Raises `InputError` if there are none."""
    names = sorted(p.stem for p in (folder / "img").glob("*.jpg") if half_of(p.stem) == half)
    if not names:
        raise InputError(f"Expected receipts as {folder}/img/*.jpg and box/*.json. Found none.")
    return names


def read_boxes(path: Path) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom in pixels of the stored picture; boxes without area left out.

    Raises `InputError` for a missing or malformed file, or one without any box.
    """
    try:
        told = [entry["box"] for entry in json.loads(path.read_text())]
        boxes: NDArray[np.float64] = np.array(told, dtype=float)
    except Exception as problem:  # deep lists, numbers without end, other layouts
        raise InputError(f"Expected boxes of text in {path}. Got: {problem!r}.") from None
    if boxes.ndim == 2 and boxes.shape[1] == 4:  # some annotations are mere lines
        boxes = boxes[np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)]
        if len(boxes):
            return boxes
    raise InputError(f"Expected boxes of four numbers, right > left, bottom > top in {path}.")


def load_receipt(folder: Path, name: str, tiling: Tiling) -> Receipt:
    """Read, scale and cut one receipt.

    Raises `PictureError` for a broken picture, `InputError` for broken boxes.
    """
    picture = open_picture(folder / "img" / f"{name}.jpg")
    boxes = read_boxes(folder / "box" / f"{name}.json")
    scale = tiling.text_height / float(np.median(boxes[:, 3] - boxes[:, 1]))
    width, height = (max(1, round(edge * scale)) for edge in picture.size)
    check_size((width, height), f"{name}, of which text is scaled to {tiling.text_height} pixels")
    page = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    return cut(page, boxes * scale, name, tiling)


def cut(page: NDArray[np.uint8], boxes: NDArray[np.float64], name: str, tiling: Tiling) -> Receipt:
    """Cut a (H, W, 3) page and its boxes, in the page's pixels, into crops."""
    height, width = page.shape[:2]
    side = tiling.side
    rows, columns = -(-height // side), -(-width // side)
    padded = np.empty((rows * side, columns * side, 3), dtype=np.uint8)
    padded[:] = np.median(page.reshape(-1, 3), axis=0).astype(np.uint8)
    padded[:height, :width] = page
    inside = np.zeros(padded.shape[:2], dtype=bool)
    inside[:height, :width] = True
    text = np.zeros_like(inside)
    for left, top, right, bottom in np.rint(boxes).astype(int).clip(min=0):
        text[top:bottom, left:right] = True
    text &= inside
    if not text.any():
        raise InputError(f"Expected text boxes inside receipt '{name}'. Its boxes cover nothing.")
    crops = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return Receipt(
        name=name,
        crops=np.ascontiguousarray(crops.reshape(-1, side, side, 3)),
        layout=(rows, columns),
        size=(height, width),
        text=_per_token(text, (rows, columns), tiling),
        valid=_per_token(inside, (rows, columns), tiling) > 0,
    )


def _per_token(
    mask: NDArray[np.bool_], layout: tuple[int, int], tiling: Tiling
) -> Float[Tensor, "T L"]:
    """Pixels of `mask` under each token, crop by crop."""
    rows, columns = layout
    grid, patch = tiling.side // tiling.patch, tiling.patch
    areas = mask.reshape(rows, grid, patch, columns, grid, patch).sum((2, 5))
    per_crop = areas.transpose(0, 2, 1, 3).reshape(rows * columns, grid * grid)
    return torch.from_numpy(per_crop.astype(np.float32))
