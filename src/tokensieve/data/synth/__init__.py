"""Generated pictures with known answers: pages, cluttered pages, scenes, mixed, documents.

>>> picture = generate("mixed", seed=7, split="val")
>>> picture.image.size, picture.questions[0].topic
((192, 192), 'text')
"""

from __future__ import annotations

import numpy as np

from tokensieve.data.synth.dense import dense
from tokensieve.data.synth.pages import cluttered, mixed, plain
from tokensieve.data.synth.picture import (
    CHARS,
    COLOURS,
    GRID,
    IGNORE,
    KEY_LETTERS,
    KINDS,
    LABEL_NAMES,
    MAX_OBJECTS,
    PATCH,
    PLACES,
    SHAPES,
    SIZE,
    SPLITS,
    Labels,
    Picture,
    Question,
)
from tokensieve.data.synth.scenes import scene
from tokensieve.errors import ConfigError, UnknownNameError

__all__ = [
    "CHARS",
    "COLOURS",
    "GRID",
    "IGNORE",
    "KEY_LETTERS",
    "KINDS",
    "LABEL_NAMES",
    "MAX_OBJECTS",
    "PATCH",
    "PLACES",
    "ROTATION",
    "SHAPES",
    "SIZE",
    "SPLITS",
    "Labels",
    "Picture",
    "Question",
    "generate",
]

# The mix that nano and its selectors learn from: picture i is of kind ROTATION[i % 21].
ROTATION = [
    "cluttered",
    "plain",
    "mixed",
    "cluttered",
    "scene",
    "plain",
    "cluttered",
    "mixed",
    "dense",
    "cluttered",
    "plain",
    "scene",
    "cluttered",
    "mixed",
    "plain",
    "cluttered",
    "scene",
    "plain",
    "mixed",
    "cluttered",
    "dense",
]
MANY = 99  # more lines than any page holds


def generate(kind: str, seed: int, split: str = "train", max_lines: int = MANY) -> Picture:
    """The picture number `seed` of `kind` in `split`: same arguments, same picture.

    `kind` is one of KINDS, `split` one of SPLITS (their pictures never coincide). In "test"
    a third of the pages is set in faces unseen in training (`Picture.unseen_font`).
    `max_lines` caps the key-value lines of a page, for an easy start of a curriculum.

    Raises:
        UnknownNameError: no such kind or split.
        ConfigError: a negative seed, or no line allowed.
    """
    if kind not in KINDS:
        raise UnknownNameError.of("kind of picture", kind, KINDS)
    if split not in SPLITS:
        raise UnknownNameError.of("split", split, SPLITS)
    if seed < 0:
        raise ConfigError(f"Expected a seed of 0 or more. Got {seed}.")
    if max_lines < 1:
        raise ConfigError(f"Expected room for at least one line. Got max_lines={max_lines}.")
    rng = np.random.default_rng((SPLITS.index(split), KINDS.index(kind), seed))
    unseen = split == "test" and kind != "scene" and bool(rng.random() < 1 / 3)
    if kind == "scene":
        return scene(rng)
    if kind == "dense":
        return dense(rng, unseen)
    page = {"plain": plain, "cluttered": cluttered, "mixed": mixed}[kind]
    picture = page(rng, unseen, max_lines)
    while not len(picture.value_mask):  # clutter left no room for a line: another page
        picture = page(rng, unseen, max_lines)
    return picture
