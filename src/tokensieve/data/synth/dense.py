"""Document-like pictures without questions: receipts, columns of text, ruled tables.

They teach the encoder and the selector what real, scanned text looks like. Text is 5 to 12
pixels tall (capitals), placed freely. S: picture side in pixels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.random import Generator

from tokensieve.data.synth.canvas import Canvas, Colour, Tag
from tokensieve.data.synth.glyphs import CHARSET, faces, glyph
from tokensieve.data.synth.objects import pick
from tokensieve.data.synth.paper import blank_paper, pattern, photo, scan, smooth_noise
from tokensieve.data.synth.picture import GRID, SIZE, Picture

LETTERS, DIGITS, SIGNS = CHARSET[26:52], CHARSET[52:62], CHARSET[62:]
RECEIPT = [
    "TOTAL",
    "CASH",
    "CHANGE",
    "INVOICE",
    "TAX",
    "GST",
    "Amount",
    "Item",
    "Qty",
    "Price",
    "Date",
    "Time",
    "Rounding",
    "Subtotal",
    "Tel",
    "Cashier",
    "Receipt",
    "No.",
    "Thank",
    "You",
    "Please",
    "Come",
    "Again",
    "Goods",
    "Sold",
    "are",
    "not",
    "refundable",
    "(RM)",
    "SDN",
    "BHD",
    "JALAN",
    "TAMAN",
    "Discount",
    "Summary",
    "SR",
    "Company",
    "Address",
    "Bill",
    "Document",
    "Payment",
    "Visa",
    "Member",
    "Points",
]


def word(rng: Generator) -> str:
    """A word, number, date, price or code."""
    what = rng.random()
    if what < 0.25:
        return RECEIPT[int(rng.integers(len(RECEIPT)))]
    if what < 0.4:
        return f"{rng.uniform(0, 10 ** rng.integers(1, 4)):.2f}"
    if what < 0.5:
        return "".join(DIGITS[int(i)] for i in rng.integers(0, 10, int(rng.integers(1, 11))))
    if what < 0.55:
        day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(0, 30)
        return f"{day:02d}{pick(rng, '/', '-', '.')}{month:02d}/20{year:02d}"
    text = "".join(LETTERS[int(i)] for i in rng.integers(0, 26, int(rng.integers(1, 10))))
    text = pick(rng, text, text, text.upper(), text.capitalize())
    if rng.random() < 0.2:
        text += SIGNS[int(rng.integers(len(SIGNS)))]
    return text


class Setter:
    """Sets lines of words in one face and size; `pitch` is the line spacing in pixels."""

    def __init__(self, rng: Generator, canvas: Canvas, unseen: bool) -> None:
        self.rng, self.canvas = rng, canvas
        self.face = int(rng.choice(faces(unseen)))
        self.cap = int(rng.choice([5, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 10, 11, 12]))
        self.pitch = self.cap * float(rng.uniform(1.45, 2.3)) + 1
        shade = float(rng.uniform(0, 110) if rng.random() < 0.5 else rng.uniform(0, 40))
        self.ink: Colour = (shade, shade, shade)
        if rng.random() < 0.1:
            self.ink = (shade, shade * float(rng.uniform(0.3, 1)), float(rng.uniform(60, 160)))

    def width(self, text: str) -> float:
        """Width of `text` in pixels."""
        return sum(self.advance(char) for char in text)

    def advance(self, char: str) -> float:
        """Pen movement after `char` in pixels."""
        return self.cap * 0.4 if char == " " else glyph(self.face, char, self.cap).advance

    def put(self, text: str, x: float, baseline: float) -> None:
        """Set `text` from `x` on; what lies outside the picture is cut off."""
        if not -self.cap < baseline < SIZE + 2 * self.cap:
            return
        for char in text:
            if x > SIZE:
                return
            if char != " ":
                shape = glyph(self.face, char, self.cap)
                place = (round(x) + shape.left, round(baseline))
                self.canvas.put(shape, *place, self.ink, Tag(char))
            x += self.advance(char)

    def fill(self, limit: float) -> str:
        """Words up to `limit` pixels."""
        text = word(self.rng)
        while self.width(text) < limit:
            text += " " + word(self.rng)
        return text[:-1] if self.width(text) > limit + 40 else text


def dense(rng: Generator, unseen: bool) -> Picture:
    """A crop of a receipt, a text column or a table, as a scanner would give it."""
    rgb = blank_paper(rng, tint=0.25)
    if rng.random() < 0.25:
        rgb -= (smooth_noise(rng, 3) * rng.uniform(5, 18))[..., None]
    if rng.random() < 0.12:
        rgb -= (pattern(rng, (SIZE, SIZE)) * rng.uniform(2, 14))[..., None]
    if rng.random() < 0.12:  # the table under the paper shows beside it
        edge = int(rng.integers(10, 80))
        side = np.s_[:, :edge] if rng.random() < 0.5 else np.s_[:, SIZE - edge :]
        rgb[side] = photo(rng, (SIZE, edge))
    canvas = Canvas(rgb)
    layout = (receipt, columns, table)[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
    layout(rng, canvas, unseen)
    if rng.random() < 0.3:
        scribble(rng, canvas)
    if rng.random() < 0.4:
        canvas.rotate(float(rng.uniform(-3, 3)))
    labels, text, values = canvas.label(0)
    if rng.random() < 0.8:
        canvas.rgb = scan(rng, canvas.rgb, float(rng.uniform(0.5, 1.3)))
    if rng.random() < 0.6:
        canvas.rgb[:] = canvas.rgb.mean(2, keepdims=True)
    none = np.zeros((GRID, GRID), dtype=bool)
    return Picture(canvas.image(), "dense", (), labels, none & text, values, unseen)


def receipt(rng: Generator, canvas: Canvas, unseen: bool) -> None:
    """Centred header, item lines with prices on the right, dashed rules, blank stretches."""
    setter = Setter(rng, canvas, unseen)
    left, right = rng.uniform(-60, 40), rng.uniform(150, 260)
    y, mode = rng.uniform(-6, 20), "items"
    while y < SIZE + 8:
        if rng.random() < 0.15:
            mode = pick(rng, "header", "items", "gap", "rule", "restyle")
        if mode == "gap":
            y += rng.uniform(10, 70)
            mode = "items"
        elif mode == "rule":
            rule(rng, canvas, setter, y, left, right)
            mode = "items"
        elif mode == "restyle":
            ink = setter.ink
            setter = Setter(rng, canvas, unseen)
            setter.ink, mode = ink, "items"
        elif mode == "header":
            text = setter.fill(rng.uniform(20, 120))
            setter.put(text, (left + right - setter.width(text)) / 2, y)
        else:
            setter.put(setter.fill(rng.uniform(10, (right - left) * 0.7)), left, y)
            if rng.random() < 0.6:
                price = f"{rng.uniform(0, 99):.2f}"
                setter.put(price, right - setter.width(price), y)
        y += setter.pitch


def rule(
    rng: Generator, canvas: Canvas, setter: Setter, y: float, left: float, right: float
) -> None:
    """A dashed row of signs or a thin line."""
    if rng.random() < 0.6:
        sign = pick(rng, "-", "=", "*", "_")
        setter.put(sign * int((right - left) / max(2.0, setter.advance(sign))), left, y)
    elif 1 < y < SIZE - 1:
        canvas.rgb[int(y), max(0, int(left)) : max(0, int(right))] = setter.ink


def columns(rng: Generator, canvas: Canvas, unseen: bool) -> None:
    """One to three columns of running text, ragged, with paragraph gaps and a title."""
    setter, count = Setter(rng, canvas, unseen), int(rng.integers(1, 4))
    gutter = SIZE / count
    for column in range(count):
        y = rng.uniform(0, 30) if rng.random() < 0.8 else rng.uniform(30, 120)
        end = SIZE + 8 if rng.random() < 0.7 else rng.uniform(60, SIZE)
        while y < end:
            setter.put(setter.fill(gutter * rng.uniform(0.5, 0.85)), column * gutter + 4, y)
            y += setter.pitch + (rng.uniform(5, 30) if rng.random() < 0.12 else 0)


def table(rng: Generator, canvas: Canvas, unseen: bool) -> None:
    """A grid with rules and short entries, some cells empty."""
    setter = Setter(rng, canvas, unseen)
    pitch = setter.pitch * float(rng.uniform(1.1, 1.8))
    edges = np.cumsum(rng.uniform(28, 75, 8)) + rng.uniform(-30, 20)
    y, ruled = rng.uniform(-5, 40), rng.random()
    top, bottom = y - setter.cap * 1.5, min(SIZE - 1.0, rng.uniform(90, 260))
    while y < bottom:
        for a, b in pairwise(edges.tolist()):
            if rng.random() < 0.8:
                text = setter.fill((b - a) * 0.35)[: max(2, int((b - a) / setter.cap))]
                setter.put(text, a + 3, y)
        line = int(y + pitch * 0.35)
        if ruled < 0.6 and 0 <= line < SIZE:
            canvas.rgb[line, max(0, int(edges[0])) : max(0, int(edges[-1]))] = setter.ink
        y += pitch
    if ruled < 0.4:
        for edge in edges:
            if 0 <= edge < SIZE:
                canvas.rgb[max(0, int(top)) : int(bottom), int(edge)] = setter.ink


def scribble(rng: Generator, canvas: Canvas) -> None:
    """A pen stroke: an open ellipse or a wave, one or two pixels wide. It is not text."""
    t = np.linspace(0, rng.uniform(4, 6.5), 500)
    x0, y0 = rng.uniform(20, SIZE - 20, 2)
    x = x0 + rng.uniform(15, 50) * np.cos(t) + rng.uniform(0, 9) * np.cos(3 * t)
    y = y0 + rng.uniform(8, 30) * np.sin(t) + rng.uniform(0, 9) * np.sin(5 * t)
    inside = (x >= 0) & (x < SIZE - 1) & (y >= 0) & (y < SIZE - 1)
    rows, cols = y[inside].astype(int), x[inside].astype(int)
    tone = rng.uniform(10, 110)
    for down, right in ((0, 0), (0, 1), (1, 0)):
        canvas.rgb[rows + down, cols + right] = tone
