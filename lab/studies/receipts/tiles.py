"""A page or a scanned receipt cut in crops at the text height an encoder was trained on.

T crops, S pixels of a crop's side, P pixels of a patch's side, L tokens of a crop, N words.
"""

from __future__ import annotations

import hashlib
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
from tokensieve.evaluate.receipts import Told, read_boxes, words_of
from tokensieve.evaluate.shown import ground, shares


@dataclass(frozen=True)
class Tiling:
    """Crops of `side` pixels in patches of `patch`, text boxes `text_height` tall (median).

    base: in front of them stands the whole page, made small, as in LLaVA-NeXT. It takes tokens of
    the budget; text is looked for in the others only.
    """

    side: int = 192
    patch: int = 12
    text_height: float = 11.0
    base: bool = False


@dataclass(frozen=True)
class Receipt:
    """One receipt, scaled and cut.

    name: the file's stem.
    crops: (T, S, S, 3) RGB bytes, row-major over `layout`, padded with the paper's colour.
    layout: (rows, columns) of crops.
    size: (height, width) of the scaled receipt without padding.
    text: (T, L) pixels of text boxes under each token; none under the base crop's.
    valid: (T, L) False where a token lies wholly in the padding.
    words: (N, 4) left, top, right, bottom of each word in pixels of the scaled receipt.
    said: what the words say, in the same order.
    """

    name: str
    crops: NDArray[np.uint8]
    layout: tuple[int, int]
    size: tuple[int, int]
    text: Float[Tensor, "T L"]
    valid: Bool[Tensor, "T L"]
    words: NDArray[np.int64]
    said: tuple[str, ...]

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


def load_receipt(folder: Path, name: str, tiling: Tiling) -> Receipt:
    """Read, scale and cut one receipt.

    Raises `PictureError` for a broken picture, `InputError` for broken boxes.
    """
    picture = open_picture(folder / "img" / f"{name}.jpg")
    told = read_boxes(folder / "box" / f"{name}.json")
    scale = tiling.text_height / float(np.median([box[3] - box[1] for box, _ in told]))
    width, height = (max(1, round(edge * scale)) for edge in picture.size)
    check_size((width, height), f"{name}, of which text is scaled to {tiling.text_height} pixels")
    page = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    return cut(page, [(box * scale, text) for box, text in told], name, tiling)


def cut(page: NDArray[np.uint8], told: Told, name: str, tiling: Tiling) -> Receipt:
    """Cut a (H, W, 3) page and its lines of text, in the page's pixels, into crops."""
    height, width = page.shape[:2]
    side = tiling.side
    rows, columns = -(-height // side), -(-width // side)
    padded = np.empty((rows * side, columns * side, 3), dtype=np.uint8)
    padded[:] = ground(page)
    padded[:height, :width] = page
    inside = np.zeros(padded.shape[:2], dtype=bool)
    inside[:height, :width] = True
    text = np.zeros_like(inside)
    for left, top, right, bottom in (np.rint(box).astype(int).clip(min=0) for box, _ in told):
        text[top:bottom, left:right] = True
    text &= inside
    if not text.any():
        raise InputError(f"Expected text boxes inside receipt '{name}'. Its boxes cover nothing.")
    crops = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    crops = np.ascontiguousarray(crops.reshape(-1, side, side, 3))
    text_TL = _per_token(text, (rows, columns), tiling)
    valid_TL = _per_token(inside, (rows, columns), tiling) > 0
    if tiling.base:
        whole, valid_L = _whole(page, tiling)
        crops = np.concatenate([whole[None], crops])
        text_TL = torch.cat([torch.zeros_like(text_TL[:1]), text_TL])
        valid_TL = torch.cat([valid_L[None], valid_TL])
    words, said = _inside(words_of(told), (height, width))
    return Receipt(name, crops, (rows, columns), (height, width), text_TL, valid_TL, words, said)


def covered(
    kept: Bool[Tensor, "T L"], layout: tuple[int, int], tiling: Tiling
) -> NDArray[np.bool_]:
    """Which pixels of all crops side by side lie under kept tokens; a base crop is left out."""
    rows, columns = layout
    grid = tiling.side // tiling.patch
    tokens = kept.numpy()[int(tiling.base) :].reshape(rows, columns, grid, grid).swapaxes(1, 2)
    flat = tokens.reshape(rows * grid, columns * grid)
    return np.asarray(flat.repeat(tiling.patch, 0).repeat(tiling.patch, 1))


def word_shares(receipt: Receipt, kept: Bool[Tensor, "T L"], tiling: Tiling) -> NDArray[np.float64]:
    """(N,) share of each word's box that lies under kept tokens."""
    return shares(covered(kept, receipt.layout, tiling), receipt.words)


def _inside(told: Told, size: tuple[int, int]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Words with any pixel inside the page of that height and width, their boxes cut to it."""
    height, width = size
    boxes = np.array([box for box, _ in told]).reshape(-1, 4)
    boxes = np.rint(boxes).astype(np.int64).clip(0, [width, height, width, height])
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[real], tuple(word for (_, word), ok in zip(told, real, strict=True) if ok)


def _whole(page: NDArray[np.uint8], tiling: Tiling) -> tuple[NDArray[np.uint8], Tensor]:
    """The page padded to a square and made as small as a crop, and which tokens are valid."""
    height, width = page.shape[:2]
    scale = tiling.side / max(height, width)
    small = Image.fromarray(page).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS
    )
    crop = np.empty((tiling.side, tiling.side, 3), dtype=np.uint8)
    crop[:] = ground(page)
    crop[: small.height, : small.width] = np.asarray(small)
    inside = np.zeros(crop.shape[:2], dtype=bool)
    inside[: small.height, : small.width] = True
    return crop, _per_token(inside, (1, 1), tiling)[0] > 0


def _per_token(
    mask: NDArray[np.bool_], layout: tuple[int, int], tiling: Tiling
) -> Float[Tensor, "T L"]:
    """Pixels of `mask` under each token, crop by crop."""
    rows, columns = layout
    grid, patch = tiling.side // tiling.patch, tiling.patch
    areas = mask.reshape(rows, grid, patch, columns, grid, patch).sum((2, 5))
    per_crop = areas.transpose(0, 2, 1, 3).reshape(rows * columns, grid * grid)
    return torch.from_numpy(per_crop.astype(np.float32))
