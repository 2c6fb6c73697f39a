"""A video to ask about: frames of a file, or of a folder of pictures, and when each was.

F frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from PIL import Image

from tokensieve.data.pictures.decode import (
    LIMITS,
    Limits,
    animated,
    check_file,
    named,
    open_picture,
)
from tokensieve.data.sources.files import PICTURES
from tokensieve.data.sources.video import SAFE, middles, need_av, sampled_frames
from tokensieve.errors import ConfigError, PictureError
from tokensieve.fields import shown

UNTOLD = 1_000_000_000  # frames of a video that does not say how many it has


@dataclass(frozen=True)
class Video:
    """A video as a model is shown it: F frames of one size, in order.

    seconds: when each frame was, from 0 on and rising; left out, one a second.

    Raises `PictureError` for no frames, for what is no picture and for pictures of several sizes,
    `ConfigError` for times that do not fit.
    """

    frames: Sequence[Image.Image]
    seconds: Sequence[float] = ()

    def __post_init__(self) -> None:
        frames = tuple(self.frames) if isinstance(self.frames, list | tuple) else (self.frames,)
        wrong = [one for one in frames if not isinstance(one, Image.Image) or 0 in one.size]
        if not frames or wrong:
            got = shown(wrong[0]) if frames else "no frame"
            raise PictureError(
                f"Expected the frames of a video as PIL.Images. Got {got}. Open it: "
                "tokensieve.data.sources.video.open_video(path)."
            )
        if len(sizes := {one.size for one in frames}) > 1:
            raise PictureError(
                f"Expected frames of one size. Got {sorted(sizes)}. Resize them to one, or ask "
                "about them as pictures."
            )
        seconds = tuple(map(float, self.seconds)) or tuple(map(float, range(len(frames))))
        rising = all(a < b for a, b in pairwise(seconds)) and seconds[0] >= 0
        rising = rising and seconds[-1] < math.inf
        if len(seconds) != len(frames) or not rising:
            raise ConfigError(
                f"Expected {len(frames)} rising `seconds` from 0 on, one a frame. Got "
                f"{shown(list(seconds))}. Leave them out for one frame a second."
            )
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "seconds", seconds)

    @property
    def fps(self) -> float:
        """Frames a second, as they were chosen."""
        between = self.seconds[-1] - self.seconds[0]
        return (len(self.frames) - 1) / between if between else 1.0


def open_video(
    path: str | Path, frames: int = 8, fps: float | None = None, limits: Limits = LIMITS
) -> Video:
    """The video at `path`, or the pictures in a folder, in the order of their names.

    frames: at most so many, at the middles of as many equal stretches of time. fps: no more than
    so many a second; of a folder, which has no times, how many a second its pictures are.

    Raises `PictureError` for what is no video, holds no frames or is beyond the limits,
    `ConfigError` for less than one frame, `MissingPackageError` without PyAV.
    """
    if frames < 1 or (fps is not None and not 0 < fps < math.inf):
        raise ConfigError(
            f"Expected at least one frame, and an fps above 0. Got frames={frames}, fps={fps}. "
            "Pass --frames 8, and --fps 1 or none."
        )
    if "://" in str(path):
        raise PictureError(
            f"Expected a video file. Got the address {str(path)[:80]}; tokensieve fetches nothing. "
            "Download it first (curl -O ADDRESS) and name the file."
        )
    path = Path(path).expanduser()
    if not path.exists():
        raise PictureError(f"Expected a video file at {path}. Got nothing. Check the path.")
    if path.is_dir():
        return _of_folder(path, frames, fps, limits)
    length, most, starts = _measured(path, limits)
    if fps is not None and length:
        most = min(most, max(1, round(length * fps)))
    count = min(frames, most)
    found: list[Image.Image] = []
    while len(found) < count:
        found += sampled_frames(path, count, len(found), limits)
    if starts:
        return Video(found, [starts[number] for number in middles(len(starts), count)])
    step = length / count if length else 1.0
    return Video(found, [(i + 0.5) * step for i in range(count)])


def _of_folder(folder: Path, frames: int, fps: float | None, limits: Limits) -> Video:
    names = sorted(one for one in folder.iterdir() if one.suffix.lower() in PICTURES)
    if not names:
        raise PictureError(
            f"Expected a video file, or a folder of frames. Got {folder}, which holds no pictures "
            f"({', '.join(sorted(PICTURES))}). Name a file in it."
        )
    chosen = middles(len(names), min(frames, len(names)))
    return Video([open_picture(names[i], limits) for i in chosen], [i / (fps or 1) for i in chosen])


def _measured(path: Path, limits: Limits) -> tuple[float, int, list[float]]:
    """Length in seconds (0: not said), number of frames (`UNTOLD`: not said), and of a GIF, whose
    frames may each be shown for another time, when each comes."""
    with named(str(path), what="video"):
        if path.suffix.lower() == ".gif":
            with animated(path, limits) as (total, _, frame):
                shown = [float(frame(i).info["duration"]) / 1000 for i in range(total)]
                ends = list(accumulate(shown))
                return ends[-1], total, [0.0, *ends[:-1]] if ends[-1] else []
        av = need_av()
        check_file(path, None)
        with av.open(str(path), options=SAFE) as container:
            if not container.streams.video:
                raise PictureError(f"Expected a video at {path}. Got a file without pictures.")
            stream = container.streams.video[0]
            length = float(stream.duration * stream.time_base) if stream.duration else 0.0
            if not length and container.duration:
                length = container.duration / av.time_base
            return max(0.0, length), stream.frames or UNTOLD, []
