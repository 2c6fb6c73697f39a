"""What tells other pictures of the same names apart, at the price of a look at some of them; and
names as text that can be stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

SAMPLED = 64  # places looked at
EDGE = 4096  # bytes at either end of each
PARTS = 16  # of a large file


def plain(name: str) -> str:
    r"""A file's name as text: bytes that are no UTF-8, which Python hides in it, as '\xe9'."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def inside(folder: Path, relative: str) -> Path | None:
    """The path below `folder` that a stranger's file names; None where it leads elsewhere."""
    if ".." not in relative and relative[:1] not in ("", ".", os.sep):
        return folder / relative
    start = os.path.abspath(folder).rstrip(os.sep)
    path = os.path.normpath(os.path.join(start, relative))
    return folder / path[len(start) + 1 :] if path.startswith(f"{start}{os.sep}") else None


def spread(total: int) -> list[int]:
    """At most `SAMPLED` different numbers below `total`, evenly spread and always the same."""
    return sorted({i * total // SAMPLED for i in range(SAMPLED)}) if total else []


def whole_files(paths: Iterable[Path]) -> list[tuple[Path, int, int]]:
    """(path, 0, size) of each file; size -1 where it cannot be told."""
    return [(path, 0, _size(path)) for path in paths]


def in_parts(paths: Iterable[Path]) -> list[tuple[Path, int, int]]:
    """(path, first byte, size) of the parts of each large file."""
    return [
        (path, i * size // PARTS, (i + 1) * size // PARTS - i * size // PARTS)
        for path, _, size in whole_files(paths)
        for i in range(PARTS)
    ]


def spans_hash(spans: Sequence[tuple[Path, int, int]]) -> str:
    """Short hash of the size of every (path, first byte, size) and of the edges of some.

    Neither paths nor times go in: a folder that was copied or moved is the same.
    """
    digest = hashlib.sha256(repr([size for _, _, size in spans]).encode())
    for index in spread(len(spans)):
        digest.update(_edges(*spans[index]))
    return digest.hexdigest()[:16]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _edges(path: Path, start: int, size: int) -> bytes:
    """The first and last bytes; none of a file that cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            first = file.read(min(EDGE, size))
            file.seek(start + max(0, size - EDGE))
            return first + file.read(min(EDGE, size))
    except (OSError, ValueError):
        return b"?"
