"""What a source of pictures is, and several of them as one numbered list."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

from PIL import Image

from tokensieve.data.pictures.decode import LIMITS, Limits, decode_picture, named
from tokensieve.data.sources.content import plain
from tokensieve.errors import ConfigError, PictureError


@runtime_checkable
class Source(Protocol):
    """Pictures under a name, in an order that never changes.

    name: what the manifest calls it. keys: one per picture. detail: what else decides which
    pictures these are, such as a table's column. `content` is a short hash that other pictures
    under the same keys change, cheap even for a million of them. `read` gives the bytes of a
    picture file or, where there is no such file, the picture itself; it may be called from several
    threads, and raises `PictureError` for a picture that cannot be read or is beyond the limits.
    A source that asks has `questions` too, one a key.
    """

    name: str
    keys: Sequence[str]
    detail: str

    def content(self) -> str:
        """Short hash of what lies under the keys, the same on every machine."""
        ...

    def read(self, index: int, limits: Limits = LIMITS) -> bytes | Image.Image:
        """The picture of key number `index`."""
        ...


@dataclass(frozen=True)
class Read:
    """A picture in RGB and the hash of the bytes it came from; or None and what is wrong."""

    picture: Image.Image | None
    sha256: str
    error: str = ""


class Listing:
    """All pictures of several sources, numbered from 0.

    Raises `ConfigError` for two sources of the same name, or none.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ConfigError("Expected at least one source of pictures. Got none. Pass --images.")
        names = [source.name for source in sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(
                f"Expected a name of its own for each source. Got two named '{twice}'. "
                f"Name one of them: --images NAME=SRC."
            )
        self.sources = tuple(sources)
        self._ends = list(accumulate(len(source.keys) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def where(self, index: int) -> tuple[Source, int]:
        """The source of picture `index`, and its number there."""
        part = bisect_right(self._ends, index)
        return self.sources[part], index - (self._ends[part - 1] if part else 0)

    def label(self, index: int) -> tuple[str, str]:
        """The name of its source, and its key there."""
        source, number = self.where(index)
        return source.name, source.keys[number]

    def question(self, index: int) -> str:
        """What is asked of picture `index`; "" of a source that asks nothing."""
        source, number = self.where(index)
        questions: Sequence[str] = getattr(source, "questions", ())
        return questions[number] if questions else ""

    def hash(self) -> str:
        """Short hash over all names and keys."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(f"\n{source.name}\n{source.detail}\n".encode())
            for key in source.keys:
                digest.update(key.encode() + b"\0")
        return digest.hexdigest()[:16]

    def content(self) -> str:
        """Short hash over what lies under the keys, as far as each source looks."""
        told = repr([source.content() for source in self.sources])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def read(
        self,
        index: int,
        limits: Limits = LIMITS,
        before: Callable[[int], None] | None = None,
    ) -> Read:
        """Picture `index`, decoded; one that cannot be read is no exception here.

        before: called with its number of pixels before these fill the memory. Raises
        `MissingPackageError` for a video without PyAV.
        """
        source, number = self.where(index)
        name, sha = f"{source.name}/{source.keys[number]}", ""
        try:
            with named(name):
                data = source.read(number, limits)
            sha = content_hash(data)
            if isinstance(data, bytes):
                return Read(decode_picture(data, name, limits, before), sha)
        except PictureError as error:
            return Read(None, sha, plain(str(error)))
        if before is not None:
            before(data.width * data.height)
        return Read(data, sha)


def content_hash(data: bytes | Image.Image) -> str:
    """SHA-256 of a file's bytes, or of a picture's size and pixels."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256(repr((data.mode, data.size)).encode())
    digest.update(data.tobytes())
    return digest.hexdigest()
