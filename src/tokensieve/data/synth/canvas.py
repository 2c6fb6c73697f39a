"""A canvas that remembers which glyph owns each pixel, so that labels come for free.

S: picture side in pixels; G: patches per side; N: glyphs drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.data.synth.glyphs import Glyph
from tokensieve.data.synth.picture import (
    CHARS,
    GRID,
    IGNORE,
    KEY_LETTERS,
    PATCH,
    SIZE,
    Labels,
    Mask,
)

Rgb = NDArray[np.float32]
Colour = tuple[float, float, float]
NO_LINE = -1


@dataclass(frozen=True)
class Tag:
    """What a glyph means: its character and, in a key-value line, line, place and key."""

    char: str
    line: int = NO_LINE
    index: int = IGNORE
    key: str = ""


class Canvas:
    """Pixels (S, S, 3) float32 in 0..255 plus, per pixel, the ink and the glyph that owns it."""

    def __init__(self, rgb: Rgb) -> None:
        self.rgb = rgb
        self.ink = np.zeros((SIZE, SIZE), dtype=np.uint8)
        self.owner = np.full((SIZE, SIZE), -1, dtype=np.int32)
        self.tags: list[Tag] = []

    def put(self, glyph: Glyph, x: int, baseline: int, colour: Colour, tag: Tag) -> None:
        """Draw `glyph` with its left edge at `x`, clipped to the canvas."""
        height, width = glyph.alpha.shape
        y = baseline - glyph.top
        top, left = max(0, y), max(0, x)
        bottom, right = min(SIZE, y + height), min(SIZE, x + width)
        if top >= bottom or left >= right:
            return
        part = (slice(top - y, bottom - y), slice(left - x, right - x))
        area = (slice(top, bottom), slice(left, right))
        paper, ink = self.rgb[area], self.ink[area]
        paper += (np.array(colour, np.float32) - paper) * glyph.weight[part]
        np.maximum(ink, glyph.alpha[part], out=ink)
        np.putmask(self.owner[area], glyph.inked[part], len(self.tags))
        self.tags.append(tag)

    def image(self) -> Image.Image:
        """The picture as 8-bit RGB."""
        return Image.fromarray(np.clip(self.rgb, 0, 255).astype(np.uint8))

    def rotate(self, degrees: float) -> None:
        """Rotate picture, ink and ownership together about the centre (small angles)."""
        fill = tuple(int(v) for v in np.clip(np.median(self.rgb, axis=(0, 1)), 0, 255))
        turned = self.image().rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill)
        self.rgb = np.asarray(turned, dtype=np.float32).copy()
        self.ink = np.asarray(Image.fromarray(self.ink).rotate(degrees)).copy()
        owner = Image.fromarray(self.owner).rotate(degrees, fillcolor=-1)
        self.owner = np.asarray(owner, dtype=np.int32).copy()

    def label(self, lines: int) -> tuple[Labels, Mask, Mask]:
        """Labels, text mask (G, G) and value masks (lines, G, G) of what was drawn.

        A patch is labelled by the glyph that owns most of its ink, unless only a sliver of
        that glyph is here or another glyph owns nearly as much: then `char` is IGNORE.
        """
        labels = Labels.empty()
        ink = self.ink.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
        labels.ink[:] = np.round(ink).astype(np.uint8)
        text = np.zeros((GRID, GRID), dtype=bool)
        values = np.zeros((lines, GRID, GRID), dtype=bool)
        if not self.tags:
            return labels, text, values
        counts = self._owned_pixels()
        best, inked = counts.argmax(1), counts.sum(1)
        most, total = counts.max(1), np.maximum(counts.sum(0), 1)
        clear = ((most >= 0.3 * total[best]) | (most >= 14)) & (most >= 0.55 * inked) & (most >= 3)
        labels.char.flat[(inked > 0) & ~clear] = IGNORE
        for patch in np.flatnonzero(clear):
            tag = self.tags[best[patch]]
            labels.char.flat[patch] = CHARS.index(tag.char)
            if tag.line == NO_LINE:
                continue
            labels.index.flat[patch] = tag.index
            labels.key1.flat[patch] = KEY_LETTERS.index(tag.key[0])
            labels.key2.flat[patch] = KEY_LETTERS.index(tag.key[1])
            text.flat[patch] = True
            if tag.index >= 3:
                values[tag.line].flat[patch] = True
        return labels, text, values

    def _owned_pixels(self) -> NDArray[np.int64]:
        """Ink pixels of every glyph on every patch, (G * G, N)."""
        cell = np.arange(SIZE) // PATCH
        patch = cell[:, None] * GRID + cell[None, :]
        mine = self.owner >= 0
        codes = patch[mine] * len(self.tags) + self.owner[mine]
        flat = np.bincount(codes, minlength=GRID * GRID * len(self.tags))
        return flat.reshape(GRID * GRID, len(self.tags))
