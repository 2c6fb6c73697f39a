"""Pages of nano 2's world as documents: what is asked of them stands in boxes, word by word.

The pages are as they are drawn, 336 pixels square; `text_height` does not apply.
"""

from __future__ import annotations

import numpy as np

from lab.nano2 import layouts
from lab.nano2.pages import HARDEST, Page, page
from lab.studies.receipts.tiles import Receipt, Tiling, cut
from tokensieve.evaluate.receipts import Told

SEED = 2  # no page of a training, nor one that a suite asks about
KINDS = (*layouts.TRAIN, "mixed")
HALF = 7.0  # pixels from the middle of a small letter to the edge of its box, of 12 to 30 px type


def page_names(split: str, number: int) -> tuple[str, ...]:
    """Names of the first pages of a split, layouts by turns."""
    return tuple(f"{split}-{KINDS[n % len(KINDS)]}-{n}" for n in range(number))


def load_page(name: str, tiling: Tiling) -> Receipt:
    """The page of that name, cut. Every second one has fonts that no training shows.

    Raises `InputError` where the page says nothing.
    """
    split, kind, number = name.split("-")
    drawn = page(SEED, split, int(number), HARDEST, seen=int(number) % 2 == 0, kind=kind)
    return cut(drawn.image, told_of(drawn), name, tiling)


def told_of(drawn: Page) -> Told:
    """Boxes of the words of all keys and values, from the places of their characters."""
    found: Told = []
    for one in drawn.asked:
        both = (one.question.replace(",", " "), one.key), (one.answer, one.value)
        for text, numbers in both:  # a table's question is "row, column"; spaces have no place
            at = 0
            for word in text.split():
                mine = list(numbers[at : at + len(word)])
                at += len(word)
                if mine:
                    found.append((_box(drawn, mine), word))
    return found


def _box(drawn: Page, numbers: list[int]) -> np.ndarray:
    """Around characters: half a step beyond the first and last place, `HALF` above and below."""
    x, y = drawn.places[numbers].T
    step = np.ptp(x) / (len(x) - 1) if len(x) > 1 else HALF
    return np.array([x.min() - step / 2, y.min() - HALF, x.max() + step / 2, y.max() + HALF])
