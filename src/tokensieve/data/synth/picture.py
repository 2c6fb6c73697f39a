"""What a generated picture is: pixels, questions, and what every patch shows.

G: patches per side (16), PATCH = 12 pixels, SIZE = 192 pixels. Label maps are uint8 (G, G);
IGNORE (255) means "nothing to say about this patch".
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.data.synth.glyphs import CHARSET

SIZE, PATCH, GRID = 192, 12, 16
IGNORE = 255
KINDS = ("plain", "cluttered", "scene", "mixed", "dense")
SPLITS = ("train", "val", "test")
KEY_LETTERS = "ACEFHJKLMNPRTWXY"  # no two of them look alike at 8 pixels
CHARS = " " + CHARSET  # class 0 is a blank patch
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")
MAX_OBJECTS = 4

Map = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """A question and its one right answer.

    `topic` is text, background, colour, shape, count or where; `about` is text (the value of a
    key), place (of a key), scene or panel (a photo on a page); `line` numbers the key-value
    line asked for, -1 if none.
    """

    text: str
    answer: str
    topic: str
    about: str
    line: int = -1


@dataclass(frozen=True)
class Labels:
    """Dense labels, each (G, G) uint8.

    `char` index into CHARS; `index` place of the character in its key-value line; `key1`,
    `key2` letters of that line's key (in KEY_LETTERS); `ink` share of the patch under text,
    0..255; `colour`, `shape`, `ordinal` (by place, in a panel from left to right) of the object
    on the patch; `place` of the object or line; `background` colour on patches that show
    background only.
    """

    char: Map
    index: Map
    key1: Map
    key2: Map
    ink: Map
    colour: Map
    shape: Map
    ordinal: Map
    place: Map
    background: Map

    @classmethod
    def empty(cls) -> Labels:
        """Labels of a blank picture: no character, no ink, nothing else known."""
        maps = {f.name: np.full((GRID, GRID), IGNORE, np.uint8) for f in fields(cls)}
        maps["char"][:] = 0
        maps["ink"][:] = 0
        return cls(**maps)

    def stack(self) -> NDArray[np.uint8]:
        """All maps as one array (fields, G, G), in the order of the fields."""
        return np.stack([getattr(self, f.name) for f in fields(self)])


LABEL_NAMES = tuple(f.name for f in fields(Labels))


@dataclass(frozen=True)
class Picture:
    """A generated picture.

    `text_mask` (G, G): patches holding ink of a key-value line; `value_mask` (lines, G, G):
    for each line the patches holding its three digits; `unseen_font`: set in a face that
    training never shows.
    """

    image: Image.Image
    kind: str
    questions: tuple[Question, ...]
    labels: Labels
    text_mask: Mask
    value_mask: Mask
    unseen_font: bool = False
