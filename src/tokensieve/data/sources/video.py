"""Frames of videos: spread evenly over the length, decoded with PyAV or, for GIFs, Pillow.

F frames asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.data.extras import need
from tokensieve.data.pictures import to_rgb
from tokensieve.data.sources.content import plain, spans_hash, whole_files
from tokensieve.errors import ConfigError, InputError, MissingPackageError, PictureError

VIDEOS = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"})
KEPT = 2  # videos whose frames stay in memory: neighbours in the listing are asked for together


class VideoSource:
    """Frames of one video or animated GIF. Raises `InputError` if it is none."""

    detail = ""

    def __init__(self, name: str, path: Path, frames: int) -> None:
        self.name, self._path = name, path
        self._reader = FrameReader(frames)
        self.keys: Sequence[str] = frame_keys(path.name, frames)
        try:
            self._reader.read(path, 0)
        except PictureError as error:
            raise InputError(str(error)) from error

    def content(self) -> str:
        """Short hash of the video's size and edges."""
        return spans_hash(whole_files([self._path]))

    def read(self, index: int) -> Image.Image:
        """The frame. Raises `PictureError`."""
        return self._reader.read(self._path, index)


def frame_keys(path: str, frames: int) -> list[str]:
    """One key per frame of the video at `path`. Raises `ConfigError` for less than one."""
    if frames < 1:
        raise ConfigError(f"Expected `frames` of at least 1. Got {frames}.")
    return [f"{plain(path)}#{i}" for i in range(frames)]


class FrameReader:
    """F frames of any video; the last few videos are remembered."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._lock = threading.Lock()
        self._seen: OrderedDict[Path, list[Image.Image]] = OrderedDict()

    def read(self, path: Path, frame: int) -> Image.Image:
        """Frame number `frame` of F. Raises `PictureError` for a broken video."""
        with self._lock:
            if path not in self._seen:
                self._seen[path] = sampled_frames(path, self._frames)
                while len(self._seen) > KEPT:
                    self._seen.popitem(last=False)
            return self._seen[path][frame].copy()


def sampled_frames(path: Path, count: int) -> list[Image.Image]:
    """`count` frames at the middles of as many equal stretches; a short video repeats some.

    Raises `PictureError` for a broken video, `MissingPackageError` without PyAV.
    """
    try:
        frames = _gif(path, count) if path.suffix.lower() == ".gif" else _decoded(path, count)
    except (PictureError, MissingPackageError):
        raise
    except (OSError, ValueError, EOFError, SyntaxError, IndexError) as error:
        raise PictureError(
            f"Expected a whole video at {path}. Got: {' '.join(str(error).split())}. "
            "Fetch it again."
        ) from error
    if not frames:
        raise PictureError(f"Expected a video with pictures at {path}. Got none. Fetch it again.")
    return frames


def _middles(total: int, count: int) -> list[int]:
    return [min(total - 1, int((i + 0.5) * total / count)) for i in range(count)]


def _gif(path: Path, count: int) -> list[Image.Image]:
    with Image.open(path) as picture:
        frames = []
        for index in _middles(getattr(picture, "n_frames", 1), count):
            picture.seek(index)
            frames.append(to_rgb(picture))
    return frames


def _decoded(path: Path, count: int) -> list[Image.Image]:
    av = need_av()
    try:
        return _with_av(av, path, count)
    except av.error.FFmpegError as error:
        raise PictureError(
            f"Expected a whole video at {path}. Got: {error}. Fetch it again."
        ) from error


def need_av() -> Any:
    """PyAV. Raises `MissingPackageError` that says how to install it."""
    return need("av", "video", "to read videos")


def _with_av(av: Any, path: Path, count: int) -> list[Image.Image]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise PictureError(f"Expected a video at {path}. Got a file without pictures.")
        stream = container.streams.video[0]
        if stream.duration and stream.time_base:
            found = _sought(container, stream, count)
            if found is not None:
                return found
    with av.open(str(path)) as container:  # no usable times: count first, then pick
        total = sum(1 for _ in container.decode(video=0))
    wanted = _middles(total, count) if total else []
    with av.open(str(path)) as container:
        kept = {
            number: frame.to_image()
            for number, frame in enumerate(container.decode(video=0))
            if number in set(wanted)
        }
    return [kept[number] for number in wanted]


def _sought(container: Any, stream: Any, count: int) -> list[Image.Image] | None:
    """Frames found by their time, without decoding what lies between; None if times are missing."""
    start, frames = stream.start_time or 0, []
    for i in range(count):
        wanted = start + int((i + 0.5) * stream.duration / count)
        container.seek(wanted, stream=stream)
        last = None
        for frame in container.decode(stream):
            if frame.pts is None:
                return None
            if last is not None and frame.pts > wanted:
                break
            last = frame
        if last is None:
            return None
        frames.append(last.to_image())
    return frames
