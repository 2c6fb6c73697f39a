"""What a training says of itself: lines of JSON that survive a kill, and trackers by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokensieve.errors import MissingPackageError, UnknownNameError
from tokensieve.files import Lines


class Journal:
    """A file of JSON lines, one per logged step, without those a resumed run does again.

    A kill may leave lines of steps after the last checkpoint, or half a line; they are taken out
    when the run goes on, so that no step stands there twice.
    """

    def __init__(self, path: Path, first: int) -> None:
        kept = []
        for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError):  # half written
                continue
            if step < first:
                kept.append(line)
        self._lines = Lines(path, kept)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, which has a "step". Raises `ConfigError` where the disk refuses."""
        self._lines.write(json.dumps(values))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def check_tracker(name: str) -> str:
    """`name`, if Accelerate knows such a tracker and its package is installed.

    Raises `UnknownNameError`, or `MissingPackageError` that names the package.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = {str(key): key for key in LOGGER_TYPE_TO_CLASS}
    if name not in known:
        raise UnknownNameError.of("tracker", name, known)
    if name not in {str(tracker) for tracker in get_available_trackers()}:
        raise MissingPackageError(
            f"Expected the package of the tracker '{name}' to be installed. It is not. Run: "
            f"pip install {name}"
        )
    return name


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested values by joined names, as trackers take them."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = float(value)
    return found
