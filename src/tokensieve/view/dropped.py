"""Pictures and videos that strangers drop on the viewer: bytes, opened within limits."""

from __future__ import annotations

import base64
import binascii
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.data.pictures.decode import Limits, decode_picture
from tokensieve.data.sources.clips import Video, open_video
from tokensieve.errors import PictureError
from tokensieve.evaluate.prepare import Shown, check_takes_videos
from tokensieve.fields import shown
from tokensieve.hf.models.loaded import Loaded

MOST_PICTURES = 4
MOST_BYTES = 24 << 20  # of all files together
MOST_PIXELS = 40_000_000
FRAMES = 8  # of a video


@dataclass(frozen=True)
class Pictures:
    """What one asker dropped. digest: of their pixels."""

    items: tuple[Shown, ...]
    digest: str

    @classmethod
    def of(cls, items: Sequence[Shown]) -> Pictures:
        """Of opened pictures and videos."""
        hashed = hashlib.sha256()
        for one in items:
            frames = one.frames if isinstance(one, Video) else (one,)
            hashed.update(repr((type(one).__name__, [frame.size for frame in frames])).encode())
            for frame in frames:
                hashed.update(frame.tobytes())
        return cls(tuple(items), hashed.hexdigest())


def opened(files: Any, loaded: Loaded, limits: Limits) -> Pictures:
    """Pictures and videos sent as {"name": text, "data": base64}, within the limits.

    Raises `PictureError` for what is none, for too many and too large ones.
    """
    if not isinstance(files, list) or not 1 <= len(files) <= MOST_PICTURES:
        got = len(files) if isinstance(files, list) else shown(files)
        raise PictureError(
            f"Expected 1 to {MOST_PICTURES} pictures. Got {got}. Drop fewer at once."
        )
    size = sum(len(str(file.get("data", ""))) for file in files if isinstance(file, dict))
    if size > MOST_BYTES * 4 // 3 + 4 * MOST_PICTURES:
        raise PictureError(
            f"Expected at most {MOST_BYTES >> 20} MB. Got {size * 3 // 4 >> 20} MB. Scale them "
            "down first."
        )
    return Pictures.of([_open_one(file, loaded, limits) for file in files])


def _open_one(file: Any, loaded: Loaded, limits: Limits) -> Shown:
    told = file.get("data") if isinstance(file, dict) else None
    if not isinstance(told, str):
        raise PictureError(f"Expected a picture's bytes. Got {shown(file)}. Drop a file.")
    name = "".join(c for c in str(file.get("name", "")) if c.isprintable())[:80] or "the file"
    try:
        data = base64.b64decode(told, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"Expected base64 for {name}. Got other text. Drop it anew.") from error
    suffix = _video_suffix(data)
    if suffix is None:
        return decode_picture(data, name, limits)
    check_takes_videos(loaded)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video{suffix}"
        path.write_bytes(data)
        try:
            return open_video(str(path), FRAMES, None, limits)
        except PictureError as error:
            raise PictureError(str(error).replace(str(path), name)) from error


def _video_suffix(data: bytes) -> str | None:
    """How a file of that video container ends; None: it is taken for a picture."""
    if data[:4] == b"RIFF":
        return ".avi" if data[8:12] == b"AVI " else None  # else WebP
    if data[4:8] == b"ftyp":
        return None if data[8:12] in (b"avif", b"avis", b"heic", b"mif1") else ".mp4"
    return ".webm" if data[:4] == b"\x1aE\xdf\xa3" else None
