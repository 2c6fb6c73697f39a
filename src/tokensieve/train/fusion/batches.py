"""Which rows a step reads, and rows as the tensors of a batch.

B rows, T tokens of the longest, V visual tokens of a picture, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tokensieve.data.llava import Found, Row
from tokensieve.data.pictures.decode import named, open_picture
from tokensieve.errors import ConfigError, PictureError, RowError
from tokensieve.train.batches import generator_of
from tokensieve.train.fusion.tokens import IGNORED, Reader

PROBLEMS = "problems"  # key of a batch: what could not be read, as (place in the rows, message)
UNREADABLE = "picture unreadable"


class Conversations(Dataset[dict[str, Any]]):
    """Rows that are known to be good but for their pictures, which are opened when read."""

    def __init__(self, found: Found, reader: Reader) -> None:
        """Tokens of every row are made once; rows that cannot be are moved to `found.bad`."""
        self.reader, self.file = reader, found.file
        self.rows: list[Row] = []
        self.lengths: list[int] = []
        for row in found.rows:
            try:
                length = len(reader.tokens(row).ids)
            except RowError as error:
                found.bad.append(RowError(error.reason, f"{found.file}, {error}"))
            else:
                self.rows.append(row)
                self.lengths.append(length)
        found.rows = self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Ids, labels and pixels; a picture that cannot be read is blank, its row without labels,
        and the reason told under `PROBLEMS`."""
        row = self.rows[index]
        tokens = self.reader.tokens(row)
        item: dict[str, Any] = {"ids": tokens.ids, "labels": tokens.labels, "pixels": None}
        if row.picture is None:
            return item
        try:
            with named(str(row.picture)):  # processors refuse some pictures, too
                item["pixels"] = self.pixels(open_picture(row.picture))
        except PictureError as error:
            message = f"{self.file}, {row.name}: {error}"
            item |= {"pixels": self.blank(), "labels": [IGNORED] * len(tokens.ids)}
            item[PROBLEMS] = (index, message)
        return item

    def pixels(self, picture: Any) -> Float[Tensor, "3 H W"]:
        """What the encoder reads."""
        made = self.reader.processor.image_processor(images=[picture], return_tensors="pt")
        pixels: Tensor = made["pixel_values"][0]
        return pixels

    def blank(self) -> Float[Tensor, "3 H W"]:
        """A picture of nothing."""
        from PIL import Image

        return self.pixels(Image.new("RGB", (64, 64)))

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch, padded on the right.

        One without any picture carries a blank one in its padding, where nothing looks at it: so
        every process runs the same modules and every parameter has a gradient, as DDP, FSDP and
        ZeRO want it.
        """
        pixels = [item["pixels"] for item in items if item["pixels"] is not None]
        lengths = [len(item["ids"]) for item in items]
        longest = max(lengths)
        if not pixels:
            longest = max(longest, min(lengths) + self.reader.visual)
        shape = (len(items), longest)
        pad = self.reader.tokenizer.pad_token_id or 0
        ids_BT, labels_BT = torch.full(shape, pad), torch.full(shape, IGNORED)
        mask_BT = torch.zeros(shape, dtype=torch.long)
        for b, item in enumerate(items):
            ids_BT[b, : lengths[b]] = torch.tensor(item["ids"])
            labels_BT[b, : lengths[b]] = torch.tensor(item["labels"])
            mask_BT[b, : lengths[b]] = 1
        if not pixels:
            shortest = lengths.index(min(lengths))
            start = lengths[shortest]
            ids_BT[shortest, start : start + self.reader.visual] = self.reader.image_id
            pixels = [self.blank()]
        return {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "labels": labels_BT,
            "pixel_values": torch.stack(pixels),
            PROBLEMS: [item[PROBLEMS] for item in items if PROBLEMS in item],
        }


def order_of(
    rows: Conversations, batch: int, steps: int, seed: int, order: str = "length"
) -> list[int]:
    """Places of the rows of all steps, `batch` a step, from the seed alone.

    Pass after pass over the rows, each in an order of its own; the last one ends with the steps.
    "length": the rows of a step are of like length, and all with or all without a picture where
    the numbers allow. Raises `ConfigError` for fewer rows than a batch takes.
    """
    if len(rows) < batch:
        raise ConfigError(
            f"Expected at least {batch} rows, one batch. Got {len(rows)} that can be learned from. "
            "Set train.batch, or give more data."
        )
    pictured = [row.picture is not None for row in rows.rows]
    places: list[int] = []
    for epoch in range(math.ceil(steps * batch / len(rows))):
        generator = generator_of(seed, epoch)
        if order == "random":
            places += torch.randperm(len(rows), generator=generator).tolist()
        else:
            places += _by_length(rows.lengths, pictured, batch, generator)
    return places[: steps * batch]


def _by_length(
    lengths: Sequence[int], pictured: Sequence[bool], batch: int, generator: torch.Generator
) -> list[int]:
    """One pass: Transformers' groups of like length, cut into batches that are then shuffled."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    grouped: Any = get_length_grouped_indices  # untyped in Transformers
    batches, rest = [], []
    for kind in (True, False):
        places = [place for place, has in enumerate(pictured) if has is kind]
        if not places:
            continue
        found = grouped([lengths[place] for place in places], batch, generator=generator)
        ranked = [places[i] for i in found]
        whole = len(ranked) // batch * batch
        batches += [ranked[i : i + batch] for i in range(0, whole, batch)]
        rest += ranked[whole:]
    batches += [rest[i : i + batch] for i in range(0, len(rest) // batch * batch, batch)]
    rest = rest[len(rest) // batch * batch :]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [place for i in shuffled for place in batches[i]] + rest


class Given(Sampler[int]):
    """Places in an order that is given."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)
