"""Any picture Pillow has decoded as RGB of 8 bits: alpha on white, greys of more bits scaled.

Worked on in strips, so that of a large picture only the result is held besides the picture itself.
H, W pixels of a strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from tokensieve.errors import PictureError

STRIP = 1 << 20  # pixels worked on at once
_SIXTEEN = frozenset({"PNG", "PPM"})  # formats whose greys of mode "I" have 16 bits


def to_rgb(picture: Image.Image, name: str = "the picture") -> Image.Image:
    """`picture` as RGB; `name` is what errors call it.

    Alpha, also that of a palette or of one transparent colour, is laid on white. CMYK, palettes
    and greys of 1 and 8 bits are converted as Pillow does. Other greys become 8 bits, halves
    rounded up, and what counts as white depends on what the picture is:

    | picture                                    | black | white                        |
    |--------------------------------------------|-------|------------------------------|
    | 16 bits (PNG, PPM, TIFF)                   | 0     | 65535                        |
    | float, all values within 0..1              | 0     | 1                            |
    | int32 or float, all values within 0..255   | 0     | 255                          |
    | int32 or float, all values within 0..65535 | 0     | 65535                        |
    | any other, of several values               | least | greatest                     |
    | any other, of one value                    |       | black below 0, white above   |

    Raises `PictureError` where a float picture holds NaN or Inf.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        return _joined(picture, _grey(picture, name))
    if picture.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in picture.info:
        return _joined(picture, _on_white)
    return picture.copy() if picture.mode == "RGB" else picture.convert("RGB")


def _on_white(strip: Image.Image) -> Image.Image:
    layer = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _grey(picture: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of a strip of a grey picture."""
    black, white = _black_and_white(picture, name)
    clear = picture.info.get("transparency")

    def made(strip: Image.Image) -> Image.Image:
        values_HW = np.asarray(strip)
        scaled_HW = (values_HW.astype(np.float64) - black) / (white - black)
        grey_HW = np.floor(scaled_HW.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        if isinstance(clear, int):
            grey_HW[values_HW == clear] = 255
        return Image.fromarray(grey_HW).convert("RGB")

    return made


def _black_and_white(picture: Image.Image, name: str) -> tuple[float, float]:
    """The values that become 0 and 255, see `to_rgb`."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SIXTEEN):
        return 0.0, 65535.0
    low, high = np.inf, -np.inf
    for _, strip in _strips(picture):  # NaN stays the least and the greatest
        values_HW = np.asarray(strip)
        low, high = np.minimum(low, values_HW.min()), np.maximum(high, values_HW.max())
    low, high = float(low), float(high)
    if not np.isfinite([low, high]).all():
        raise PictureError(
            f"Expected finite pixel values in {name}. Got NaN or Inf. Clean the picture first."
        )
    if low >= 0:
        whites = [1.0, 255.0, 65535.0] if picture.mode == "F" else [255.0, 65535.0]
        for white in whites:
            if high <= white:
                return 0.0, white
    if low < high:
        return low, high
    return (0.0, high) if high > 0 else (low, 0.0)


def _joined(picture: Image.Image, made: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """RGB of what `made` makes of each strip."""
    done = Image.new("RGB", picture.size)
    for top, strip in _strips(picture):
        done.paste(made(strip), (0, top))
    return done


def _strips(picture: Image.Image) -> Iterator[tuple[int, Any]]:
    """(first row, that many rows) from the top to the bottom."""
    width, height = picture.size
    rows = max(1, STRIP // max(1, width))
    for top in range(0, height, rows):
        yield top, picture.crop((0, top, width, min(height, top + rows)))
