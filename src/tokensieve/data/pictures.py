"""Open a picture file so that a model may see it: any format Pillow reads, always RGB out."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tokensieve.errors import PictureError

MAX_PIXELS = 89_478_485  # Pillow's own line between a picture and a decompression bomb
MAX_ASPECT = 200  # processors scale the short side up: beyond this a thin strip fills the memory

# What Pillow's decoders raise on bytes they cannot make sense of.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


class PictureNote(UserWarning):
    """Something about a picture that its owner may want to know."""


def open_picture(path: str | Path) -> Image.Image:
    """The picture at `path` as RGB, turned upright by its EXIF tag.

    Of an animation the first frame (with a `PictureNote` that says so). Transparency is laid on
    white, CMYK and palettes are converted, 16-bit and float greys are scaled to 8 bits, not cut.

    Raises `PictureError` if the file is missing, empty, truncated, no picture, above `MAX_PIXELS`
    pixels or thinner than 1 : `MAX_ASPECT`.
    """
    path = Path(path)
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own check follows
            picture, frames = _read(path, str(path))
    except PermissionError as error:
        raise PictureError(
            f"Expected a readable file. Got no permission to read {path}. Change its rights."
        ) from error
    except OSError as error:  # a path no file can have
        raise PictureError(_damaged(str(path), error)) from error
    if frames > 1:
        warnings.warn(
            f"{path} is animated ({frames} frames): the first frame is used.",
            PictureNote,
            stacklevel=2,
        )
    return picture


def decode_picture(data: bytes, name: str) -> Image.Image:
    """The same for the bytes of a picture file; `name` is what errors call it.

    Of an animation the first frame, without a note. Safe to call from several threads.
    """
    if not data:
        raise PictureError(f"Expected a picture in {name}. Got no bytes. Fetch it again.")
    return _read(BytesIO(data), name)[0]


def _read(file: Path | BytesIO, name: str) -> tuple[Image.Image, int]:
    """The first frame, upright and in RGB, and the number of frames."""
    try:
        picture = Image.open(file)
    except UnidentifiedImageError as error:
        raise PictureError(
            f"Expected a picture in {name}. Got {_kind(file)}. Give a PNG, JPEG, WebP or the like."
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(_too_large(name, "more than twice as many")) from error
    except PermissionError:
        raise
    except _BROKEN as error:
        raise PictureError(_damaged(name, error)) from error
    with picture:
        _check_size(name, picture.size)
        frames = _decoded(name, picture)
        try:
            upright = ImageOps.exif_transpose(picture)
        except _BROKEN:  # a garbled EXIF block is no reason to refuse the pixels
            upright = picture
        return to_rgb(upright), frames


def to_rgb(picture: Image.Image) -> Image.Image:
    """`picture` as RGB: alpha on white, greys of more than 8 bits scaled to 8.

    Raises `PictureError` where a float picture holds NaN or Inf.
    """
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture.copy()
    if picture.mode.startswith("I") or picture.mode == "F":
        return _scaled(np.asarray(picture))
    if picture.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")


def _scaled(values_HW: np.ndarray) -> Image.Image:
    """Greys of 16 bits (0..65535), floats in 0..1, or any other range stretched to 0..255."""
    values_HW = values_HW.astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise PictureError("Expected finite pixel values. Got NaN or Inf. Clean the picture first.")
    low, high = float(values_HW.min()), float(values_HW.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    grey = np.floor((values_HW - low) / (high - low) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _check_file(path: Path) -> None:
    if not path.exists():
        raise PictureError(f"Expected a picture file at {path}. Got nothing. Check the path.")
    if path.is_dir():
        raise PictureError(f"Expected a picture file. Got the directory {path}. Name a file in it.")
    if not path.is_file():
        raise PictureError(f"Expected a regular file. Got the device or pipe {path}.")
    if path.stat().st_size == 0:
        raise PictureError(f"Expected a picture in {path}. Got an empty file. Fetch it again.")


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise PictureError(_too_large(name, f"{width} x {height} pixels"))
    if max(size) > MAX_ASPECT * min(size):
        raise PictureError(
            f"Expected sides within 1 : {MAX_ASPECT}. Got {width} x {height} pixels in {name}. "
            "Cut it into pieces first."
        )


def _decoded(name: str, picture: Image.Image) -> int:
    """Decode the first frame; the number of frames. Raises `PictureError` on damaged data."""
    try:
        frames = getattr(picture, "n_frames", 1)
        picture.seek(0)
        picture.load()
    except _BROKEN as error:
        raise PictureError(_damaged(name, error)) from error
    return int(frames)


def _kind(file: Path | BytesIO) -> str:
    head = file.getvalue()[:8] if isinstance(file, BytesIO) else _head(file)
    return f"a file that begins with {head!r}"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _damaged(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"Expected a whole picture in {name}. Got a damaged one ({reason}). Fetch it again."


def _too_large(name: str, got: str) -> str:
    return (
        f"Expected at most {MAX_PIXELS / 1e6:.0f} million pixels. Got {got} in {name}. "
        "Scale it down first."
    )
