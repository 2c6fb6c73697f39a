"""How much of the text on a user's own documents the kept tokens show, without any LLM.

By area, by whole words and, where the program is installed, by what tesseract reads of the picture
with dropped tokens painted over. Beside them the picture made smaller, to the same share of pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokensieve.budget import Pool
from tokensieve.data.pictures.decode import PictureNote, check_size
from tokensieve.errors import ConfigError, PictureError, TokensieveError, UnsupportedError
from tokensieve.evaluate import records, tesseract
from tokensieve.evaluate.ask import BASELINES, Settings
from tokensieve.evaluate.cells import Cell, Tell
from tokensieve.evaluate.prepare import prepared
from tokensieve.evaluate.receipts import Receipt, words_of
from tokensieve.evaluate.shown import (
    Pixels,
    boxes_mask,
    ground,
    masks_of,
    painted,
    pixels_of,
    shares,
    shrunk,
)
from tokensieve.files import make_folder
from tokensieve.folders import FolderBusyError, claimed
from tokensieve.hf.compress import compress
from tokensieve.hf.families.fingerprint import state_hash
from tokensieve.hf.models.loaded import Loaded
from tokensieve.viz.geometry import crop_boxes

RECEIPTS = "receipts"  # the suite of that name
TEXT_HEIGHT = {"nano": 17.0}  # pixels a line: what a model that was never shown documents reads
FORM = "legible"
WHOLE = 0.9  # a word counts as kept where so much of its box is
SMALLER = "downsample"
QUESTION = "What is the total?"  # stands beside the pictures; methods that read it know it


@dataclass(frozen=True)
class View:
    """What a model is shown of a page: its picture, or tiles of it side by side, row by row.

    scale: pixels of the tiles a pixel of the page.
    """

    pictures: tuple[Image.Image, ...]
    columns: int = 0
    scale: float = 1.0

    @classmethod
    def of(cls, loaded: Loaded, receipt: Receipt, page: Image.Image, height: float | None) -> View:
        """The page itself or, with `height`, scaled so that its median line is about so many pixels
        tall and cut in tiles of the model's input, columns of which share its width evenly.

        Raises `UnsupportedError` where the model cuts pictures itself.
        """
        if height is None:
            return cls((page,))
        side = getattr(loaded.model.config.vision_config, "image_size", None)
        cuts = crop_boxes(loaded.processor.image_processor, page.size)
        if not isinstance(side, int) or len(cuts) > 1:
            raise UnsupportedError(
                "Expected a model that sees a picture as one square, to cut tiles for it. Got "
                f"'{loaded.name}', which cuts pictures itself. Leave --text-height out."
            )
        line = float(np.median([box[3] - box[1] for box, _ in receipt.lines]))
        columns = max(1, round(page.width * height / line / side))
        scale = columns * side / page.width
        tall = max(1, round(page.height * scale))
        check_size((columns * side, tall), f"{receipt.name}, scaled for its text")
        small = np.asarray(page.resize((columns * side, tall), Image.Resampling.LANCZOS))
        rows = -(-tall // side)
        whole = np.empty((rows * side, columns * side, 3), dtype=np.uint8)
        whole[:] = ground(small)
        whole[:tall] = small
        tiles = whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        several = map(Image.fromarray, tiles.reshape(-1, side, side, 3))
        return cls(tuple(several), columns, scale)

    def kept(self, loaded: Loaded, page: Image.Image, images: Sequence[Any]) -> Pixels:
        """Which pixels of the page lie under kept tokens."""
        if not self.columns:
            return pixels_of(page.size, masks_of(loaded.processor, page.size, images))
        side = self.pictures[0].width
        masks = []
        for number, (tile, image) in enumerate(zip(self.pictures, images, strict=True)):
            row, column = divmod(number, self.columns)
            for mask in masks_of(loaded.processor, tile.size, [image]):
                left, top, right, bottom = mask.box
                x, y = column * side, row * side
                own = ((left + x) / self.scale, (top + y) / self.scale,
                       (right + x) / self.scale, (bottom + y) / self.scale)  # fmt: skip
                masks.append(replace(mask, box=own))
        return pixels_of(page.size, masks)


def legible(
    loaded: Loaded,
    receipts: Sequence[Receipt],
    cells: Sequence[Cell],
    settings: Settings,
    folder: Path,
    text_height: float | None = None,
    tell: Tell = lambda text: None,
) -> list[Path]:
    """Make the records that are missing in `folder`, one a document; all of their files.

    A method that does not fit says why in its rows. Raises `PictureError` for a broken picture,
    `ConfigError` for a folder of others, `UnsupportedError` as `View.of`.
    """
    if text_height is not None and not 0 < text_height < math.inf:
        raise ConfigError(
            f"Expected a text height above 0 pixels. Got {text_height}. Pass --text-height 17, or "
            "leave it out."
        )
    make_folder(folder)
    config = {
        "suite": RECEIPTS, "model": loaded.name, "dtype": str(loaded.model.dtype),
        "hashes": {"model": state_hash(loaded.model)}, "text_height": text_height,
        "engine": tesseract.version() if tesseract.there() else None,
        "cells": [_told(cell, settings) for cell in cells],
    }  # fmt: skip
    files = []
    for number, receipt in enumerate(receipts, 1):
        file = folder / f"{receipt.name}.json"
        files.append(file)
        own = config | {"receipt": receipt.name, "digest": receipt.digest}
        try:
            with claimed(folder, records.RECORDS, share=receipt.name):
                if not records.is_done(file, own):
                    records.write(file, _record(loaded, receipt, cells, settings, own))
                    tell(f"{number} of {len(receipts)}: {receipt.name}")
        except FolderBusyError:
            continue  # another process is at it
    return [file for file in files if file.exists()]


def _told(cell: Cell, settings: Settings) -> dict[str, Any]:
    """What decides the numbers of a cell."""
    plan = settings.plan(cell.method)
    own = {name: str(value) for name, value in plan.items() if name != "seed"}
    return {**vars(cell), "plan": own, **records.weights_hash(plan)}


def _record(
    loaded: Loaded, receipt: Receipt, cells: Sequence[Cell], settings: Settings,
    config: Mapping[str, Any],
) -> records.Record:  # fmt: skip
    started = perf_counter()
    page = receipt.open()
    view = View.of(loaded, receipt, page, config["text_height"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PictureNote)  # that nano reads one picture at a time
        inputs = prepared(loaded, view.pictures, QUESTION)
    reader = _Reader(receipt, np.asarray(page))
    rows = []
    for cell in cells:
        row = {"method": cell.method, "keep": cell.keep, "seed": cell.seed, "refused": ""}
        try:
            rows.append(row | _row(loaded, page, view, inputs, cell, settings, reader))
        except PictureError:
            raise
        except TokensieveError as error:
            rows.append(row | {"refused": " ".join(str(error).split())})
    return {
        "form": FORM, "identity": records.identity(config), "config": dict(config),
        **records.provenance(), "rows": rows, "seconds": round(perf_counter() - started, 2),
    }  # fmt: skip


def _row(
    loaded: Loaded, page: Image.Image, view: View, inputs: Any, cell: Cell, settings: Settings,
    reader: _Reader,
) -> dict[str, Any]:  # fmt: skip
    if cell.method == SMALLER:
        height, width = (max(1, round(edge * float(cell.keep) ** 0.5)) for edge in page.size[::-1])
        return reader.read(shrunk(reader.page, (height, width)))
    seeded = replace(settings, options={**settings.options, "seed": cell.seed})
    plan = seeded.plan(cell.method)
    if view.columns and cell.method not in BASELINES:
        plan["pool"] = Pool.PROMPT
    plan.pop("layer", None)
    with torch.no_grad():
        done = compress(loaded.model, inputs, cell.method, cell.keep, **plan)
    images = [image for one in done.report.calls[0].prompts for image in one.images]
    if any(crop.assign is not None for image in images for crop in image.crops):
        raise UnsupportedError(
            f"Expected a method that keeps tokens as they are. Got '{cell.method}', which merges "
            "them: what it leaves is no part of the picture. Leave it out."
        )
    kept = view.kept(loaded, page, images)
    told = {"kept": done.report.kept_tokens, "of": done.report.visual_tokens}
    return told | reader.shown(kept) | reader.read(painted(reader.page, kept))


class _Reader:
    """One document's text, and how much of it is there."""

    def __init__(self, receipt: Receipt, page: NDArray[np.uint8]) -> None:
        self.page = page
        self._words = [box for box, _ in words_of(receipt.lines)]
        size = (page.shape[1], page.shape[0])
        self._area = boxes_mask(size, [box for box, _ in receipt.lines])
        if not self._area.any():
            raise PictureError(
                f"Expected text boxes inside receipt '{receipt.name}'. Its boxes cover nothing. "
                "Give them in pixels of the stored picture."
            )
        self._labels = tesseract.words(text for _, text in receipt.lines)
        self._reads = tesseract.there() and bool(self._labels)

    def shown(self, kept: Pixels) -> dict[str, float | None]:
        """Shares of the text's area and of its words kept whole."""
        words = shares(kept, np.array(self._words)) if self._words else np.zeros(0)
        words = words[~np.isnan(words)]
        return {
            "area": round(float((kept & self._area).sum() / self._area.sum()), 4),
            "words": round(float((words >= WHOLE - 1e-6).mean()), 4) if len(words) else None,
        }

    def read(self, seen: NDArray[np.uint8]) -> dict[str, float]:
        """Share of the labelled words that the engine reads; nothing without one."""
        if not self._reads:
            return {}
        found = tesseract.words([tesseract.read(seen)])
        return {"read": round(tesseract.share(self._labels, found), 4)}


def of_pictures(cells: Sequence[Cell]) -> Iterator[Cell]:
    """The cells that say something of a picture alone: all but "no image".

    Raises `ConfigError` for a count of tokens, where a picture is to be made smaller."""
    for cell in cells:
        if cell.method == SMALLER and isinstance(cell.keep, int):
            raise ConfigError(
                f"Expected shares for receipts, such as --keep 0.2. Got {cell.keep} tokens, which "
                "say nothing of a smaller picture's pixels."
            )
        if cell.method != "none":
            yield cell
