"""Held-out generated pictures with one question per topic, ready for batches.

A suite asks about the pictures of a `World`: `SYNTH`, those of `tokensieve.data.synth`, or another
that is handed to it. N pictures, L tokens of a picture.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokensieve.data.synth import generate
from tokensieve.data.synth.picture import KINDS, Question
from tokensieve.errors import ConfigError
from tokensieve.fields import check_names

# Value of a key, where a key is, coarse questions about the scene and about a page's photo, and
# what a model without the picture guesses in part.
TOPICS = ("text", "place", "scene", "panel", "blind")
USUAL = ("text", "scene", "panel")


@dataclass(frozen=True)
class Drawn:
    """A picture and all that may be asked of it.

    text_mask: which of its tokens show text, by rows; for ceilings. groups: what it counts among,
    such as "dark", where a record counts right answers by group. values: (lines, G, G) of each line
    the tokens that show the value asked for, where that is known.
    """

    image: Image.Image
    questions: tuple[Question, ...]
    text_mask: NDArray[np.bool_]
    groups: tuple[str, ...]
    values: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class World:
    """Where pictures come from: `draw` makes number n of a kind and split, always the same one."""

    kinds: tuple[str, ...]
    draw: Callable[[str, int, str], Drawn]

    def check(self, kinds: Sequence[str]) -> None:
        """Raise `UnknownNameError` for a kind that this world has not."""
        check_names("kind of picture", kinds, self.kinds)


def _synth(kind: str, number: int, split: str) -> Drawn:
    picture = generate(kind, number, split)
    font = "unseen font" if picture.unseen_font else "seen font"
    values = picture.value_mask if len(picture.value_mask) else None
    return Drawn(picture.image, picture.questions, picture.text_mask, (font,), values)


SYNTH = World(KINDS, _synth)


@dataclass(frozen=True)
class Item:
    """One picture and the question asked about it.

    ordinal: which picture of the split it is; the same over methods, keeps and seeds.
    groups: as of `Drawn`. answer_mask: (G, G) tokens that show the answer, where that is known.
    """

    ordinal: int
    image: Image.Image
    question: Question
    text_mask: Bool[Tensor, "L"]
    groups: tuple[str, ...]
    answer_mask: NDArray[np.bool_] | None = None


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
def picture_hash(kind: str, split: str, pictures: int = 3, world: World = SYNTH) -> str:
    """Short hash of the first pictures of a kind and split and what is asked about them.

    It changes when the generator does: records made before must not be taken for records after.
    """
    digest = hashlib.sha256()
    for number in range(pictures):
        picture = world.draw(kind, number, split)
        digest.update(picture.image.tobytes())
        digest.update(repr(picture.questions).encode())
    return digest.hexdigest()[:16]


def load_tasks(
    kind: str, split: str, pictures: int, topics: Sequence[str] = USUAL, world: World = SYNTH
) -> tuple[Task, ...]:
    """Tasks over pictures 0..pictures-1 of a kind and split: one per topic of `topics` asked there.

    Every picture gives one question per topic, drawn by a hash of its ordinal.

    Raises `ConfigError` for no pictures, `UnknownNameError` for a kind or split.
    """
    if pictures < 1:
        raise ConfigError(f"Expected at least one picture to evaluate. Got {pictures}.")
    world.check([kind])
    made = [world.draw(kind, number, split) for number in range(pictures)]
    asked = {question.about for picture in made for question in picture.questions}
    return tuple(
        Task(kind, topic, tuple(filter(None, map(partial(_item, kind, topic), count(), made))))
        for topic in topics
        if topic in asked
    )


def _item(kind: str, topic: str, ordinal: int, picture: Drawn) -> Item | None:
    asked = [question for question in picture.questions if question.about == topic]
    if not asked:
        return None
    choice = zlib.crc32(f"{kind}/{topic}/{ordinal}".encode()) % len(asked)
    mask = torch.from_numpy(picture.text_mask.reshape(-1).copy())
    one, values = asked[choice], picture.values
    answer = values[one.line] if values is not None and topic == "text" and one.line >= 0 else None
    return Item(ordinal, picture.image, one, mask, picture.groups, answer)
