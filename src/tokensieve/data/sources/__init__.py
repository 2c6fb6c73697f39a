"""Where pictures come from: `open_source` reads what the user wrote after --images.

[NAME=]SRC, SRC one of
  a folder              every picture below it; of videos, frames
  shards-*.tar          pictures in tar files
  data-*.parquet        a column of pictures, as bytes or as struct {bytes, path}
  hf:DATASET[:SPLIT]    a data set of the hub or a folder `datasets` can load
  clip.mp4, clip.gif    frames of a video, spread evenly over it
  photo.png             one picture
  synth:KINDS:COUNT[:SPLIT]  generated pictures, KINDS by commas or "mix"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from tokensieve.data.pictures.decode import LIMITS, Limits
from tokensieve.data.sources.base import Listing, Read, Source, content_hash
from tokensieve.data.sources.content import plain, spans_hash, whole_files
from tokensieve.data.sources.files import PICTURES, FolderSource, TarSource, read_bytes
from tokensieve.data.sources.generated import GeneratedSource
from tokensieve.data.sources.tables import DatasetSource, ParquetSource
from tokensieve.data.sources.video import VIDEOS, VideoSource
from tokensieve.errors import ConfigError, InputError

__all__ = ["Listing", "Read", "Source", "content_hash", "open_source"]

_NAMED = re.compile(r"([\w.+-]+)=(.+)", re.DOTALL)


class FileSource:
    """One picture file."""

    detail = ""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path
        self.keys: Sequence[str] = [plain(path.name)]

    def content(self) -> str:
        """Short hash of the file's size and edges."""
        return spans_hash(whole_files([self._path]))

    def read(self, index: int, limits: Limits = LIMITS) -> bytes:
        """The file's bytes. Raises `PictureError`."""
        return read_bytes(self._path, limits)


def open_source(spec: str, *, frames: int = 8, column: str | None = None) -> Source:
    """The source that `spec` describes: see this module.

    frames: how many of each video. column: that of the pictures, for tables; None: the likely one.

    Raises `InputError` for a source that is not there, is damaged or holds no pictures,
    `ConfigError` for a description that makes no sense, `UnknownNameError` for a kind or split of
    generated pictures, `MissingPackageError` where an optional package is missing.
    """
    if frames < 1:
        raise ConfigError(f"Expected `frames` of at least 1. Got {frames}.")
    match = None if Path(spec).exists() else _NAMED.fullmatch(spec)
    name, where = match.groups() if match else (None, spec)
    if where.startswith("synth:"):
        return _generated(name, where)
    if where.startswith("hf:"):
        dataset, split = _split_off(where.removeprefix("hf:"))
        return DatasetSource(name or Path(dataset).name, dataset, split, column)
    paths = _paths(where)
    first = paths[0]
    stem = re.sub(r"[^\w.+-]+|[-_]*[*?].*", "", first.stem if len(paths) == 1 else Path(where).stem)
    name = name or stem or plain(first.absolute().name)
    if first.is_dir():
        if (first / "dataset_dict.json").exists() or (first / "state.json").exists():
            return DatasetSource(name, str(first), None, column)
        return FolderSource(name, first, frames)
    suffix = first.suffix.lower()
    if suffix == ".tar":
        return TarSource(name, paths)
    if suffix == ".parquet":
        return ParquetSource(name, paths, column)
    if suffix in VIDEOS or suffix == ".gif":
        return VideoSource(name, first, frames)
    if suffix in PICTURES:
        return FileSource(name, first)
    raise InputError(
        f"Expected a folder, .tar, .parquet, picture or video. Got {first}. "
        "Put pictures into a folder, or write hf:DATASET or synth:mix:COUNT."
    )


def _paths(where: str) -> list[Path]:
    """The path, or those a pattern names: all of one kind, sorted."""
    path = Path(where).expanduser()
    if path.exists():
        return [path]
    paths = [Path(found) for found in sorted(glob(str(path), recursive=True))]
    if not paths:
        raise InputError(f"Expected pictures at {where}. Got nothing there. Check the path.")
    kinds = {found.suffix.lower() for found in paths}
    if len(paths) > 1 and (len(kinds) > 1 or not kinds <= {".tar", ".parquet"}):
        raise InputError(
            f"Expected '{where}' to name .tar or .parquet files. Got {len(paths)} paths such as "
            f"{paths[0]}. Give the folder instead."
        )
    return paths


def _generated(name: str | None, where: str) -> GeneratedSource:
    parts = where.split(":")[1:]
    if len(parts) not in (2, 3) or not parts[1].isdecimal():
        raise ConfigError(
            f"Expected synth:KINDS:COUNT[:SPLIT], such as synth:mix:4000. Got '{where}'."
        )
    kinds = parts[0].split(",")
    return GeneratedSource(name or "-".join(kinds), kinds, int(parts[1]), *parts[2:])


def _split_off(dataset: str) -> tuple[str, str | None]:
    """A data set's name and its split, if one is named."""
    head, mark, tail = dataset.rpartition(":")
    return (head, tail) if mark and "/" not in tail else (dataset, None)
