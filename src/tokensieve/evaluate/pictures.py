"""What `tokensieve ask` is shown: picture files, and those in the package as "example:NAME"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tokensieve.assets import asset_path
from tokensieve.data.pictures.decode import Limits, open_picture, raise_pillow_limit
from tokensieve.data.sources.clips import Video, open_video
from tokensieve.data.synth.shipped import PICTURES as GENERATED
from tokensieve.errors import PictureError, UnknownNameError

EXAMPLE = "example:"
PICTURES = (*GENERATED, "typeset")  # the last is a page for nano 2


def open_all(
    names: Sequence[str],
    max_pixels: int = Limits().pixels,
    videos: Sequence[str] = (),
    frames: int = 8,
    fps: float | None = None,
) -> list[Image.Image | Video]:
    """The pictures called `names`, in RGB, and the `videos`, of which `frames` and `fps` are as of
    `open_video`. Raises `UnknownNameError` for an example there is not, `PictureError` for what is
    no picture file or no video, with what to do instead."""
    paths = [picture_path(name) for name in names]
    raise_pillow_limit(max_pixels)
    limits = Limits(max_pixels)
    pictures = [open_picture(path, limits) for path in paths]
    return [*pictures, *(open_video(name, frames, fps, limits) for name in videos)]


def picture_path(name: str) -> Path:
    """The file behind a name. Raises what `open_all` raises, as far as it can be told unopened."""
    if name.startswith(EXAMPLE):
        example = name.removeprefix(EXAMPLE)
        if example not in PICTURES:
            raise UnknownNameError.of("example", example, PICTURES)
        return Path(asset_path("pictures")) / f"{example}.png"
    if "://" in name or name.startswith("data:"):
        raise PictureError(
            f"Expected a picture file. Got the address {name[:80]}; tokensieve fetches nothing. "
            "Download it first (curl -O ADDRESS) and name the file."
        )
    path = Path(name).expanduser()
    if path.is_dir():
        raise PictureError(
            f"Expected a picture file. Got the directory '{name}'. Name files in it; "
            "`tokensieve extract` reads whole folders."
        )
    if not path.exists():
        raise PictureError(
            f"Expected a picture file at {name}. Got nothing. Check the path, and put the question "
            f"last and in quotes. Without a file: {', '.join(EXAMPLE + one for one in PICTURES)}."
        )
    if path.is_file() and _is_pdf(path):
        raise PictureError(
            f"Expected a picture file. Got the PDF {name}. Make a picture of each page first: "
            f"pdftoppm -r 100 -png {path.name} page."
        )
    return path


def _is_pdf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(5) == b"%PDF-"
    except OSError:  # opening it as a picture says why
        return False
