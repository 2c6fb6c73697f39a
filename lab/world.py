"""Nano 2's pages as a world that suites ask about: `"world": "nano2"` in a suite.json.

Seed, split and number decide a picture. Its seed is none that a training reads, `val` is for
choices, `test` for reports: the test's own words, fonts and layouts stand on no other page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lab.nano2 import layouts
from lab.nano2.asking import PATCHES, patches_of
from lab.nano2.pages import HARDEST, Page, page
from lab.nano2.sheet import Asked
from lab.nano2.words import BLIND
from tokensieve.data.synth.picture import Question
from tokensieve.errors import InputError
from tokensieve.evaluate.tasks import Drawn, World

SEED = 1  # pages of trainings, and of what decides a training's stages, have 0
TRIES = 64  # pages of which one has what a kind must have
GUESSED = {name.lower(): answers for name, answers in BLIND.items()}


@dataclass(frozen=True)
class Sort:
    """A kind: one of `layouts` by turns, the fullest of so many pages that have all of `wants`.

    Every second page has fonts that no training shows; with `own` every page has, and a layout of
    the split's own.
    """

    layouts: tuple[str, ...] = ()
    wants: tuple[str, ...] = ("text",)
    fullest: int = 1
    own: bool = False

    def at(self, number: int, split: str) -> str:
        """The layout of page `number`."""
        those = tuple(sorted(layouts.HELD_OUT[split])) if self.own else self.layouts
        return those[number // 2 % len(those)]


SORTS: Mapping[str, Sort] = {
    **{name: Sort((name,)) for name in layouts.TRAIN},
    "dense": Sort(("prose", "receipt"), fullest=3),
    "unseen": Sort(own=True),
    "blind": Sort(("lines", "receipt", "form", "cards"), wants=("blind",)),
    "scene": Sort(("scene",), wants=("scene",)),
    "mixed": Sort(("mixed",), wants=("text", "panel")),
}


def draw(kind: str, number: int, split: str) -> Drawn:
    """Picture `number` of a kind and split.

    Raises `InputError` where none of `TRIES` pages has what the kind must have.
    """
    sort = SORTS[kind]
    found = list[tuple[int, Page, tuple[Question, ...]]]()
    for drawn in candidates(sort, number, split):
        asked = questions(drawn, kind)
        if set(sort.wants) <= {question.about for question in asked}:
            found.append((len(drawn.codes), drawn, asked))
        if len(found) == sort.fullest:
            break
    if not found:
        raise InputError(
            f"Expected a page of kind '{kind}' with questions about {', '.join(sort.wants)}. Got "
            f"none of {TRIES}. Use the fonts and layouts of lab/nano2."
        )
    _, drawn, asked = max(found, key=lambda one: one[0])
    text = np.zeros(PATCHES, dtype=bool)
    text[patches_of(drawn, tuple(range(len(drawn.codes))))] = True
    font = "seen font" if seen(sort, number) else "unseen font"
    groups = (font, "dark" if drawn.dark else "light")
    return Drawn(Image.fromarray(drawn.image), asked, text, groups)


def seen(sort: Sort, number: int) -> bool:
    """Whether the page's fonts are of those trained on."""
    return number % 2 == 0 and not sort.own


def candidates(sort: Sort, number: int, split: str) -> Iterator[Page]:
    """Pages that picture `number` may be, always in the same order."""
    for n in range(TRIES):
        yield page(
            SEED, split, number * TRIES + n, HARDEST, seen(sort, number), sort.at(number, split)
        )


def questions(drawn: Page, kind: str) -> tuple[Question, ...]:
    """What may be asked of a page; what can be guessed only where the kind is "blind"."""
    told = [_question(one, number, drawn.kind) for number, one in enumerate(drawn.asked)]
    return tuple(one for one in told if (one.about == "blind") == (kind == "blind"))


def _question(one: Asked, number: int, layout: str) -> Question:
    text = f"{one.question}?"
    if one.value:
        about = "blind" if one.answer in GUESSED.get(one.question.lower(), ()) else "text"
        return Question(text, one.answer, "text", about, number)
    topics = {"background": "background", "colour": "colour", "where": "where", "how": "count"}
    about = "scene" if layout == "scene" else "panel"
    return Question(text, one.answer, topics[one.question.split()[0]], about)


NANO2 = World(tuple(SORTS), draw)
