"""The one place where pictures are decoded: a few formats, within limits, always RGB out.

A file may come from anyone. Whatever a decoder makes of it, the result is a picture or one
`PictureError` that names it; no other program is started, no other file is opened.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from tokensieve.data.pictures.colours import to_rgb
from tokensieve.errors import PictureError, TokensieveError, brief

# Of these Pillow's own decoders are asked, and no others: some start programs (EPS) or read what a
# file points to.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureNote(UserWarning):
    """Something about a picture that its owner may want to know."""


@dataclass(frozen=True)
class Limits:
    """What one picture may take.

    pixels: of a decoded picture; Pillow's own line between a picture and a decompression bomb. More
    than twice as many also need `raise_pillow_limit`.
    aspect: of the longer side to the shorter one; processors scale the short side up, so beyond
    this a thin strip fills the memory. ratio: of a table's unpacked bytes to packed ones, where
    the unpacked ones are more than `pixels`; pictures are packed already.
    """

    pixels: int = 89_478_485
    aspect: int = 200
    ratio: int = 100

    @property
    def bytes(self) -> int:
        """Of a picture's file, tar member or table cell: four a pixel, as an RGBA bitmap has."""
        return 4 * self.pixels + (1 << 20)


LIMITS = Limits()


def raise_pillow_limit(pixels: int) -> None:
    """Let Pillow open pictures of so many pixels in this whole process, which should be yours."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, pixels)


def open_picture(path: str | Path, limits: Limits = LIMITS) -> Image.Image:
    """The picture at `path` as RGB (see `colours.to_rgb`), turned upright by its EXIF tag.

    Of an animation the first frame (with a `PictureNote` that says so).

    Raises `PictureError` if the file is missing, empty, truncated, no picture of `FORMATS` or
    beyond the limits.
    """
    path = Path(path)
    with named(str(path)):
        check_file(path, limits)
    picture, frames = _read(path, str(path), limits, None, count=True)
    if frames > 1:
        warnings.warn(
            f"{path} is animated ({frames} frames): the first frame is used.",
            PictureNote,
            stacklevel=2,
        )
    return picture


def decode_picture(
    data: bytes,
    name: str,
    limits: Limits = LIMITS,
    before: Callable[[int], None] | None = None,
) -> Image.Image:
    """The same for the bytes of a picture file; `name` is what errors call it.

    before: called with the number of pixels when that is known and nothing is decoded yet.
    Of an animation the first frame, without a note. Safe to call from several threads.
    """
    if not data:
        raise PictureError(f"Expected a picture in {name}. Got no bytes. Fetch it again.")
    check_bytes(len(data), name, limits)
    return _read(BytesIO(data), name, limits, before)[0]


@contextmanager
def animated(
    path: Path, limits: Limits = LIMITS
) -> Iterator[tuple[int, tuple[int, int], Callable[[int], Image.Image]]]:
    """An animation: number of frames, their size, and what gives the frame of a number as RGB, with
    its "duration" (ms, 0: not said) in `info`. Raises `PictureError` as `open_picture` does."""
    name = str(path)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        with named(name):
            check_file(path, limits)
            picture = stack.enter_context(Image.open(path, formats=_known()))
            check_size(picture.size, name, limits)
            total = int(getattr(picture, "n_frames", 1))

        def frame(number: int) -> Image.Image:
            with named(name):
                picture.seek(number)
                check_size(picture.size, name, limits)
                picture.load()  # only now is it known whether the frame has alpha
                shown = to_rgb(picture, name)
                shown.info["duration"] = picture.info.get("duration", 0)
                return shown

        yield total, picture.size, frame


def _read(
    file: Path | BytesIO,
    name: str,
    limits: Limits,
    before: Callable[[int], None] | None,
    *,
    count: bool = False,
) -> tuple[Image.Image, int]:
    """The first frame, upright and in RGB, and the number of frames if it is asked for."""
    with ExitStack() as stack:
        stack.enter_context(quiet())
        with named(name, file):
            picture = stack.enter_context(Image.open(file, formats=_known()))
        check_size(picture.size, name, limits)
        if before is not None:
            before(picture.width * picture.height)
        with named(name):
            picture.load()
            done = to_rgb(_upright(picture), name)
            check_size(done.size, name, limits)
        return done, _frames(picture) if count else 1


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # a garbled EXIF block is no reason to refuse the pixels
        return picture
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.format = picture.format
    return turned


def _frames(picture: Image.Image) -> int:
    try:
        return int(getattr(picture, "n_frames", 1))
    except Exception:  # what follows the first frame is damaged: it is not used anyway
        return 1


@cache
def _known() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow decodes."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def named(
    name: str, file: Path | BytesIO | None = None, *, what: str = "picture"
) -> Iterator[None]:
    """Anything that goes wrong with a stranger's picture as a `PictureError` that names it; what
    tokensieve raises itself does so already."""
    try:
        yield
    except TokensieveError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(
            f"Expected a picture ({', '.join(_known())}) in {name}. Got {_kind(file)}. Convert it, "
            "or fetch it again if it is one of these."
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(
            _too_large(name, "more than PIL.Image.MAX_IMAGE_PIXELS lets pass")
        ) from error
    except PermissionError as error:
        raise PictureError(
            f"Expected a readable file. Got no permission to read {name}. Change its rights."
        ) from error
    except MemoryError as error:
        raise PictureError(_damaged(what, name, "it does not fit into the memory")) from error
    except Exception as error:  # decoders raise anything: SyntaxError, struct.error, KeyError, ...
        raise PictureError(_damaged(what, name, error)) from error


class _Quiet:
    """Decoders' warnings and log lines are told in our own errors; several threads may be inside,
    and the last one to leave restores what the first one found."""

    def __init__(self) -> None:
        self._lock, self._inside, self._undo = threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._undo.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
                logger, silent = logging.getLogger("PIL"), logging.NullHandler()
                logger.addHandler(silent)  # else Python prints what nobody handles
                self._undo.callback(logger.removeHandler, silent)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._undo.close()


quiet = _Quiet()


def check_file(path: Path, limits: Limits | None = LIMITS) -> None:
    """Raise `PictureError` unless a file that may be read is at `path`; None: of any size."""
    if not path.exists():
        raise PictureError(f"Expected a picture file at {path}. Got nothing. Check the path.")
    if path.is_dir():
        raise PictureError(f"Expected a picture file. Got the directory {path}. Name a file in it.")
    if not path.is_file():
        raise PictureError(f"Expected a regular file. Got the device or pipe {path}.")
    size = path.stat().st_size
    if size == 0:
        raise PictureError(f"Expected a picture in {path}. Got an empty file. Fetch it again.")
    if limits is not None:
        check_bytes(size, str(path), limits)


def check_bytes(size: int, name: str, limits: Limits = LIMITS) -> None:
    """Raise `PictureError` for a file that is too large to be read."""
    if size > limits.bytes:
        raise PictureError(
            f"Expected at most {limits.bytes / 1e6:,.0f} MB in a picture's file. Got "
            f"{size / 1e6:,.0f} MB in {name}. {_RAISE}"
        )


def check_size(size: tuple[int, int], name: str, limits: Limits = LIMITS) -> None:
    """Raise `PictureError` for (width, height) beyond the limits."""
    width, height = size
    if width * height > limits.pixels:
        raise PictureError(_too_large(name, f"{width} x {height} pixels", limits))
    if not 0 < max(size) <= limits.aspect * min(size):
        raise PictureError(
            f"Expected sides within 1 : {limits.aspect}. Got {width} x {height} pixels in {name}. "
            "Cut it into pieces first."
        )


_RAISE = "Scale it down first (--max-pixels of `ask` and `extract` raises the limit)."


def _kind(file: Path | BytesIO | None) -> str:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(8)
    else:
        head = file.getvalue()[:8] if file is not None else b""
    return f"a file that begins with {head!r}"


def _damaged(what: str, name: str, said: object) -> str:
    return f"Expected a whole {what} in {name}. Got a damaged one ({brief(said)}). Fetch it again."


def _too_large(name: str, got: str, limits: Limits = LIMITS) -> str:
    most = limits.pixels
    told = f"{most / 1e6:.0f} million" if most >= 10_000_000 else f"{most:,}"
    return f"Expected at most {told} pixels. Got {got} in {name}. {_RAISE}"
