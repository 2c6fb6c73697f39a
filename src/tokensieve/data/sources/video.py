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
from tokensieve.data.pictures.decode import LIMITS, Limits, animated, check_file, check_size, named
from tokensieve.data.sources.content import plain, spans_hash, whole_files
from tokensieve.errors import ConfigError, InputError, PictureError

VIDEOS = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"})
KEPT = 2  # stretches of frames that stay in memory: neighbours in the listing are read together
MOST = 200_000  # frames of a video that does not say its length: an hour and a half and more
STRETCH = 32_000_000  # pixels of each: a stretch has all frames asked for, or as many as fit

# What FFmpeg may take a stranger's file for, and open for it: no playlists, no other files.
SAFE = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "protocol_whitelist": "file",
}


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

    def read(self, index: int, limits: Limits = LIMITS) -> Image.Image:
        """The frame. Raises `PictureError`."""
        return self._reader.read(self._path, index, limits)


def frame_keys(path: str, frames: int) -> list[str]:
    """One key per frame of the video at `path`. Raises `ConfigError` for less than one."""
    if frames < 1:
        raise ConfigError(f"Expected `frames` of at least 1. Got {frames}.")
    return [f"{plain(path)}#{i}" for i in range(frames)]


class FrameReader:
    """F frames of any video; the last few that were decoded are remembered."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[Path, int], list[Image.Image]] = OrderedDict()

    def read(self, path: Path, frame: int, limits: Limits = LIMITS) -> Image.Image:
        """Frame number `frame` of F. Raises `PictureError` for a broken video."""
        with self._lock:
            for (seen, first), found in self._seen.items():
                if seen == path and first <= frame < first + len(found):
                    return found[frame - first].copy()
            found = sampled_frames(path, self._frames, frame, limits)
            self._seen[path, frame] = found
            while len(self._seen) > KEPT:
                self._seen.popitem(last=False)
            return found[0].copy()


def sampled_frames(
    path: Path, count: int, first: int = 0, limits: Limits = LIMITS
) -> list[Image.Image]:
    """`count` frames at the middles of as many equal stretches of time, from number `first` on: the
    rest of them, or as many as have `STRETCH` pixels. A short video repeats some.

    Raises `PictureError` for a broken video or one beyond the limits, `MissingPackageError` without
    PyAV.
    """
    with named(str(path), what="video"):
        if path.suffix.lower() == ".gif":
            frames = _gif(path, count, first, limits)
        else:
            av = need_av()
            check_file(path, None)
            frames = _with_av(av, path, count, first, limits)
    if not frames:
        raise PictureError(f"Expected a video with pictures at {path}. Got none. Fetch it again.")
    return frames


def middles(total: int, count: int) -> list[int]:
    return [min(total - 1, int((i + 0.5) * total / count)) for i in range(count)]


def _some(width: int, height: int) -> int:
    """How many frames of that size have `STRETCH` pixels."""
    return max(1, STRETCH // max(1, width * height))


def _gif(path: Path, count: int, first: int, limits: Limits) -> list[Image.Image]:
    with animated(path, limits) as (total, size, frame):
        return [frame(i) for i in middles(total, count)[first : first + _some(*size)]]


def need_av() -> Any:
    """PyAV. Raises `MissingPackageError` that says how to install it."""
    return need("av", "video", "to read videos")


def _with_av(av: Any, path: Path, count: int, first: int, limits: Limits) -> list[Image.Image]:
    with av.open(str(path), options=SAFE) as container:
        if not container.streams.video:
            raise PictureError(f"Expected a video at {path}. Got a file without pictures.")
        stream = container.streams.video[0]
        size = (stream.codec_context.width, stream.codec_context.height)
        check_size(size, str(path), limits)
        chosen = range(first, min(count, first + _some(*size)))
        if stream.duration and stream.time_base:
            found = _sought(container, stream, count, chosen)
            if found is not None:
                return found
    with av.open(str(path), options=SAFE) as container:  # no usable times: count, then pick
        total = _counted(container, path)
    wanted = [middles(total, count)[i] for i in chosen] if total else []
    with av.open(str(path), options=SAFE) as container:
        kept = {
            number: frame.to_image()
            for number, frame in enumerate(container.decode(video=0))
            if number in set(wanted)
        }
    return [kept[number] for number in wanted]


def _counted(container: Any, path: Path) -> int:
    """Frames of a video that does not say how many it has. Raises `PictureError` for very many."""
    total = 0
    for total, _ in enumerate(container.decode(video=0), 1):
        if total > MOST:
            raise PictureError(
                f"Expected a video of at most {MOST:,} frames where it says no length. "
                f"Got more at {path}. Cut it, or save it as MP4."
            )
    return total


def _sought(container: Any, stream: Any, count: int, chosen: range) -> list[Image.Image] | None:
    """Frames found by their time, without decoding what lies between; None if times are missing."""
    start, frames = stream.start_time or 0, []
    for i in chosen:
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
