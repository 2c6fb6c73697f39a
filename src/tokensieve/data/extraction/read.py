"""Pictures of a batch, decoded and put through the processor, of which few are held at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokensieve.data.extraction.crops import CropEncoder
from tokensieve.data.extraction.room import Room
from tokensieve.data.pictures.decode import LIMITS, Limits
from tokensieve.data.sources import Listing
from tokensieve.data.store.shards import Record

TOGETHER = 32_000_000  # pixels that are decoded at a time and processed together
PER_PIXEL = 12  # bytes: decoded, converted, and the processor's own copies

Calls = list[tuple[list[int], dict[str, Any]]]


@dataclass(frozen=True)
class Batch:
    """Pictures of one chunk, decoded and processed."""

    records: list[Record]  # one per picture
    calls: Calls  # rows of `records`, and the model's inputs


@dataclass
class Share:
    """What one batch holds of the room that all share."""

    room: Room
    number: int
    pixels: int = 0

    def take(self, pixels: int) -> None:
        """Before a picture of so many is decoded."""
        self.room.take(self.number, pixels * PER_PIXEL)
        self.pixels += pixels

    def processed(self, calls: Calls) -> None:
        """The pictures are gone, and the model's inputs are there instead."""
        kept = sum(v.nbytes for _, inputs in calls for v in inputs.values() if _is_tensor(v))
        self.room.swap(self.number, self.pixels * PER_PIXEL, kept)
        self.pixels = 0


@dataclass
class _Pictures:
    """Pictures that wait for the processor, and what it made of those before them."""

    encoder: CropEncoder
    share: Share | None
    rows: list[int] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    pixels: int = 0
    calls: Calls = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    def read(self, listing: Listing, row: int, index: int, limits: Limits) -> Record:
        """Read picture `index` of the listing, which becomes `row` of the batch."""
        read, (source, key) = listing.read(index, limits, self._before), listing.label(index)
        size = (0, 0) if read.picture is None else read.picture.size
        if read.picture is not None:
            self.pictures.append(read.picture)
            self.rows.append(row)
            self.questions.append(listing.question(index))
        return Record(index, source, key, read.sha256, *size, error=read.error)

    def _before(self, pixels: int) -> None:
        if self.pictures and self.pixels + pixels > TOGETHER:
            self.process()
        self.pixels += pixels
        if self.share is not None:
            self.share.take(pixels)

    def process(self) -> None:
        """Put what waits through the processor and let go of it."""
        calls, refused = self.encoder.prepare_each(self.pictures, self.questions)
        self.calls += [([self.rows[i] for i in indices], inputs) for indices, inputs in calls]
        self.refused |= {self.rows[i]: error for i, error in refused.items()}
        self.rows, self.pictures, self.questions, self.pixels = [], [], [], 0
        if self.share is not None:
            self.share.processed(calls)


def read_batch(
    encoder: CropEncoder,
    listing: Listing,
    part: range,
    limits: Limits = LIMITS,
    share: Share | None = None,
) -> Batch:
    """The pictures numbered `part`, decoded and put through the processor.

    Pictures of `TOGETHER` pixels or less in sum go through it in one call, as they always did, and
    so does each larger one. The encoder reads several such calls as one where the processor makes
    inputs of one shape; where it does not, it reads them one by one, which rounds differently.
    """
    waiting = _Pictures(encoder, share)
    records = [waiting.read(listing, row, index, limits) for row, index in enumerate(part)]
    waiting.process()
    for row, error in waiting.refused.items():
        records[row] = replace(records[row], error=error)
    return Batch(records, waiting.calls if waiting.refused else _joined(waiting.calls))


def _joined(calls: Calls) -> Calls:
    """The calls as one, if the processor would have made the same of all pictures together."""
    kinds = {
        tuple(
            (name, value.shape[1:], value.dtype)
            if _is_tensor(value) and value.shape[:1] == (len(rows),)
            else (name, None, None)
            for name, value in inputs.items()
        )
        for rows, inputs in calls
    }
    if len(calls) < 2 or len(kinds) > 1:
        return calls
    (kind,) = kinds
    if any(shape is None for _, shape, _ in kind):
        return calls
    names = calls[0][1]
    inputs = {name: torch.cat([inputs[name] for _, inputs in calls]) for name in names}
    return [([row for rows, _ in calls for row in rows], inputs)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
