"""What a caller of `sieve` or `compress` asks for, as it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokensieve.budget import EACH, TOGETHER, Pool, check_frames
from tokensieve.errors import ConfigError
from tokensieve.fields import shown
from tokensieve.hf.calibrated import ALL, AUTO, Calibration, Watch
from tokensieve.methods.base import Method
from tokensieve.schedules import Schedule

Keep = float | int
Layers = int | Mapping[int, Keep] | Schedule | None
Methods = str | Method | Sequence[str | Method]
Keeps = Keep | str | Sequence[Keep]


@dataclass(frozen=True)
class Asked:
    """What a caller asks for, unchecked; see `sieve`. options: the method's own, beside a name."""

    method: Methods
    keep: Keeps
    positions: str = "keep"
    pool: str = "crop"
    newlines: str = "keep"
    layer: Layers = None
    recycle: bool = False
    cover: int = 0
    site: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: str | Path | Calibration | None = None
    group: str = ALL
    frames: str | int | None = None
    trusted: bool = False

    @property
    def told(self) -> dict[str, str]:
        """What, beside method and keep, a calibration holds for, as text."""
        told = {"positions": self.positions, "pool": self.pool, "newlines": self.newlines}
        more: dict[str, Any] = {"layer": self.layer, "recycle": self.recycle, "cover": self.cover,
                                "site": self.site, "frames": self.frames}  # fmt: skip
        told |= {name: str(value) for name, value in more.items() if value}
        return told | {name: str(value) for name, value in self.options.items()}


def calibrated(model: Any, asked: Asked) -> tuple[Keep, Watch | None]:
    """The keep of the calibration that is asked for, and what watches the pictures.

    Raises `ConfigError` where it was made for another model, method or settings.
    """
    given = asked.calibration
    if asked.keep != AUTO or given is None or not isinstance(asked.method, str):
        raise ConfigError(
            "Expected keep='auto' and calibration=FILE together, and a method by its name. Got "
            f"keep={shown(asked.keep)}, calibration={shown(given)}. Make a file by "
            "tokensieve calibrate, or pass a share as keep."
        )
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    found.check(model, asked.method, asked.told)
    return found.keep_for(asked.group), None if found.look is None else Watch(found.look)


def frames_of(name: str, method: Method, asked: Asked) -> str | int | None:
    """Over which frames of a video a budget is spent: as asked, or as the method must have it."""
    frames = check_frames(asked.frames)
    if not method.across_frames:
        return frames
    if frames in (EACH, 1):
        raise ConfigError(
            f"Expected frames='{TOGETHER}' or a number of frames from 2 for '{name}', which tells "
            f"frames from the ones before. Got {shown(frames)}. Leave it out."
        )
    alone = frames is None and asked.pool == Pool.CROP
    return TOGETHER if alone else frames
