"""A sheet of paper on which every character's place is remembered.

x to the right, y down, in pixels of the picture; a character's place is the middle of its advance
and half the height of a small letter above its baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from lab.nano2.fonts import advance, font, x_height
from lab.nano2.words import CODE

SIZE = 336
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """What a page draws from: fonts, sizes in pixels, its two colours."""

    fonts: tuple[str, ...]
    low: int
    high: int
    ground: Colour
    ink: Colour


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and which characters of the sheet are the key's (a row's and a
    column's in a table) and the answer's."""

    question: str
    answer: str
    key: tuple[int, ...]
    value: tuple[int, ...]


@dataclass(frozen=True)
class Hand:
    """A font at a size."""

    name: str
    size: int

    @property
    def height(self) -> int:
        """Of a line, in pixels."""
        up, down = font(self.name, self.size).getmetrics()
        return up + down

    def width(self, text: str) -> float:
        """Of `text`, in pixels."""
        return font(self.name, self.size).getlength(text)


def near(r: Random, colour: Colour, spread: int) -> Colour:
    """A colour close to `colour`."""
    a, b, c = (min(255, max(0, part + r.randint(-spread, spread))) for part in colour)
    return a, b, c


class Sheet:
    """An RGB picture of SIZE x SIZE that is written on."""

    def __init__(self, r: Random, look: Look, image: Image.Image | None = None) -> None:
        self.r, self.look = r, look
        self.image = image or Image.new("RGB", (SIZE, SIZE), look.ground)
        self.draw = ImageDraw.Draw(self.image)
        self.places: list[tuple[float, float]] = []
        self.codes: list[int] = []
        self.asked: list[Asked] = []
        self.used: set[str] = set()

    def hand(self, low: int = 0, high: int = 99) -> Hand:
        """A font and a size of the page's range, cut to `low` .. `high`."""
        low = min(max(low, self.look.low), self.look.high)
        return Hand(
            self.r.choice(self.look.fonts), self.r.randint(low, max(low, min(high, self.look.high)))
        )

    def line_colour(self) -> Colour:
        """Of boxes and rules: between ground and ink."""
        t = self.r.uniform(0.25, 0.9)
        ground, ink = self.look.ground, self.look.ink
        a, b, c = (round(g + t * (i - g)) for g, i in zip(ground, ink, strict=True))
        return a, b, c

    def shade(self) -> Colour:
        """Of a filled box: the ground, a little towards the ink."""
        t = self.r.uniform(0.03, 0.16)
        ground, ink = self.look.ground, self.look.ink
        a, b, c = (round(g + t * (i - g)) for g, i in zip(ground, ink, strict=True))
        return near(self.r, (a, b, c), 8)

    def write(self, text: str, x: float, y: float, hand: Hand, ink: Colour | None = None) -> range:
        """Write `text` with its left edge at `x` and the top of its line at `y`."""
        face = font(hand.name, hand.size)
        base = y + face.getmetrics()[0]
        self.draw.text((x, base), text, font=face, fill=ink or self.look.ink, anchor="ls")
        middle, start = base - x_height(hand.name, hand.size) / 2, len(self.codes)
        left, before = 0.0, ""
        for char in text:
            right, before = left + advance(hand.name, hand.size, before, char), char
            if char in CODE:
                self.places.append((x + (left + right) / 2, middle))
                self.codes.append(CODE[char])
            left = right
        return range(start, len(self.codes))

    def fresh(self, key: str) -> bool:
        """Whether no line of the page has this key yet, in any case; takes it."""
        if key.lower() in self.used:
            return False
        self.used.add(key.lower())
        return True

    def pair(
        self,
        key: tuple[str, float, float, Hand],
        value: tuple[str, float, float, Hand],
        after: str = "",
        ink: Colour | None = None,
    ) -> None:
        """Write a key (and what follows it) and its value, each (text, x, y, hand); asked about."""
        text, x, y, hand = key
        written = self.write(text + after, x, y, hand, ink)
        if after.strip():
            written = range(written.start, written.start + sum(char in CODE for char in text))
        self.asked.append(Asked(text, value[0], tuple(written), tuple(self.write(*value))))
