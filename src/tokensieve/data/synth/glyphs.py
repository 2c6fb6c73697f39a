"""Glyph bitmaps from the packaged atlas, so that pictures need no installed fonts.

The atlas (`assets/synth/glyphs.npz`, built by `build_atlas.py` from Debian font packages)
holds every character of every face once, at EM pixels; smaller sizes are made by resizing.
Pictures are thus the same bytes on every machine with the same Pillow.

H, W: height and width of a bitmap in pixels. Alphas are uint8, 0 = paper, 255 = ink.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EM = 40
INKED = 90  # alpha above which a pixel counts as ink
CHARSET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;-/()#*%$@&+'!?=_"
Alpha = NDArray[np.uint8]


@dataclass(frozen=True)
class Glyph:
    """One character at one size: `alpha` (H, W), `top` and `left` in pixels from the pen
    position on the baseline (top is positive above it), `advance` in (fractional) pixels."""

    alpha: Alpha
    weight: NDArray[np.float32]  # alpha / 255, (H, W, 1), kept because drawing is the hot loop
    inked: NDArray[np.bool_]
    top: int
    left: int
    advance: float


@dataclass(frozen=True)
class Atlas:
    """The whole atlas: `bits` all bitmaps end to end; `meta` (faces, chars, 6) holds
    offset, height, width, top, left, advance (1/64 px), all at EM pixels."""

    names: tuple[str, ...]
    unseen: tuple[bool, ...]
    bits: Alpha
    meta: NDArray[np.int32]

    def cap_height(self, face: int) -> int:
        """Height of the letter H in pixels at EM."""
        return int(self.meta[face, CHARSET.index("H"), 1])


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Read the packaged atlas (once per process)."""
    path = resources.files("tokensieve").joinpath("assets/synth/glyphs.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
        names = tuple(str(name) for name in data["names"])
        unseen = tuple(bool(flag) for flag in data["unseen"])
        return Atlas(names, unseen, data["bits"], data["meta"])


@lru_cache(maxsize=2)
def faces(unseen: bool) -> tuple[int, ...]:
    """Numbers of the faces used in training (False) or kept for the test split (True)."""
    return tuple(i for i, flag in enumerate(load_atlas().unseen) if flag == unseen)


@lru_cache(maxsize=2)
def lining_faces(unseen: bool) -> tuple[int, ...]:
    """Those of `faces` whose digits all stand on the baseline and are equally tall: at ten
    pixels the small old-style figures of the others cannot be told apart."""
    atlas, digits = load_atlas(), [CHARSET.index(digit) for digit in "0123456789"]
    chosen = []
    for face in faces(unseen):
        heights, tops = atlas.meta[face, digits, 1], atlas.meta[face, digits, 3]
        if np.ptp(heights) <= 3 and np.ptp(tops) <= 3:
            chosen.append(face)
    return tuple(chosen)


@lru_cache(maxsize=60_000)
def glyph(face: int, char: str, cap_px: int, max_width: int = 0) -> Glyph:
    """The glyph of `char` with capitals `cap_px` pixels tall.

    `max_width` > 0 squeezes glyphs that are wider (for characters set in fixed cells).
    """
    atlas = load_atlas()
    offset, height, width, top, left, advance = (
        int(v) for v in atlas.meta[face, CHARSET.index(char)]
    )
    scale = cap_px / max(1, atlas.cap_height(face))
    out_h, out_w = max(1, round(height * scale)), max(1, round(width * scale))
    if max_width:
        out_w = min(out_w, max_width)
    source = atlas.bits[offset : offset + height * width].reshape(height, width)
    image = Image.fromarray(source).resize((out_w, out_h), Image.Resampling.HAMMING)
    alpha = np.asarray(image, dtype=np.uint8)
    weight = alpha[..., None] * np.float32(1 / 255)
    reach = (round(top * scale), round(left * scale), advance * scale / 64)
    return Glyph(alpha, weight, alpha > INKED, *reach)
