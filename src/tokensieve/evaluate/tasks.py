"""Held-out generated pictures with one question per topic, ready for batches.

N pictures, L tokens of a picture.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from tokensieve.data.synth import generate
from tokensieve.data.synth.picture import Picture, Question
from tokensieve.errors import ConfigError

# Value of a key, where a key is, coarse questions about the scene and about a page's photo.
TOPICS = ("text", "place", "scene", "panel")
USUAL = ("text", "scene", "panel")


@dataclass(frozen=True)
class Item:
    """One picture and the question asked about it.

    ordinal: which picture of the split it is; the same over methods, keeps and seeds.
    """

    ordinal: int
    image: Image.Image
    question: Question
    text_mask: Bool[Tensor, "L"]
    unseen_font: bool


@dataclass(frozen=True)
class Task:
    """The items of one kind and topic: what one score is about.

    topic: one of TOPICS.
    """

    kind: str
    topic: str
    items: tuple[Item, ...]

    def batches(self, size: int) -> Iterator[tuple[Item, ...]]:
        """The items, `size` at a time."""
        for start in range(0, len(self.items), size):
            yield self.items[start : start + size]


@lru_cache
def picture_hash(kind: str, split: str, pictures: int = 3) -> str:
    """Short hash of the first pictures of a kind and split and what is asked about them.

    It changes when the generator does: records made before must not be taken for records after.
    """
    digest = hashlib.sha256()
    for seed in range(pictures):
        picture = generate(kind, seed, split)
        digest.update(picture.image.tobytes())
        digest.update(repr(picture.questions).encode())
    return digest.hexdigest()[:16]


def load_tasks(
    kind: str, split: str, pictures: int, topics: Sequence[str] = USUAL
) -> tuple[Task, ...]:
    """Tasks over pictures 0..pictures-1 of a kind and split: one per topic of `topics` asked there.

    Every picture gives one question per topic, drawn by a hash of its ordinal.

    Raises `ConfigError` for no pictures, `UnknownNameError` for a kind or split.
    """
    if pictures < 1:
        raise ConfigError(f"Expected at least one picture to evaluate. Got {pictures}.")
    made = [generate(kind, seed, split) for seed in range(pictures)]
    asked = {question.about for picture in made for question in picture.questions}
    return tuple(
        Task(kind, topic, tuple(filter(None, map(partial(_item, topic), range(pictures), made))))
        for topic in topics
        if topic in asked
    )


def _item(topic: str, ordinal: int, picture: Picture) -> Item | None:
    asked = [question for question in picture.questions if question.about == topic]
    if not asked:
        return None
    choice = zlib.crc32(f"{picture.kind}/{topic}/{ordinal}".encode()) % len(asked)
    return Item(
        ordinal,
        picture.image,
        asked[choice],
        torch.from_numpy(picture.text_mask.reshape(-1).copy()),
        picture.unseen_font,
    )
