"""Pictures in folders and in tar files."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tokensieve.data.pictures.decode import LIMITS, Limits, check_bytes, check_file, named
from tokensieve.data.sources.content import plain, spans_hash, whole_files
from tokensieve.data.sources.video import VIDEOS, FrameReader, frame_keys, need_av
from tokensieve.errors import InputError, PictureError, brief

PICTURES = frozenset(
    f".{suffix}"
    for suffix in (
        "png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm",
        "pbm", "pnm", "tga", "avif", "jp2", "ico",
    )
)  # fmt: skip


class FolderSource:
    """Every picture below a folder, sorted by path; of a video, frames.

    A key is the path from the folder on, with '#3' for the fourth frame of a video. Hidden files
    are left out; links to folders are followed, each folder being read once. Raises `InputError`
    if there is no picture or a folder cannot be read, `MissingPackageError` for videos without
    PyAV.
    """

    detail = ""

    def __init__(self, name: str, folder: Path, frames: int) -> None:
        self.name, self._folder = name, folder
        self._reader = FrameReader(frames)
        self._paths = sorted(_below(folder))
        self._places: list[tuple[str, int | None]] = []  # path, and number of the frame
        keys: list[str] = []
        for path in self._paths:
            if Path(path).suffix.lower() in VIDEOS:
                keys += frame_keys(path, frames)
                self._places += [(path, frame) for frame in range(frames)]
            else:
                keys.append(plain(path))
                self._places.append((path, None))
        self.keys: Sequence[str] = keys
        if not keys:
            raise InputError(
                f"Expected pictures ({' '.join(sorted(PICTURES))}) or videos below {folder}. "
                "Got none. Check the path."
            )
        if any(frame is not None for _, frame in self._places):
            need_av()  # now, not hours later

    def content(self) -> str:
        """Short hash of the files' sizes, and of the edges of some."""
        return spans_hash(whole_files(self._folder / path for path in self._paths))

    def read(self, index: int, limits: Limits = LIMITS) -> bytes | Image.Image:
        """The picture file's bytes, or the frame. Raises `PictureError`."""
        path, frame = self._places[index]
        if frame is not None:
            return self._reader.read(self._folder / path, frame, limits)
        return read_bytes(self._folder / path, limits)


def _below(folder: Path) -> list[str]:
    """Paths of pictures and videos below `folder`, relative to it, with '/' between."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for root, folders, files in os.walk(start, onerror=_refuse):
                here = Path(root)
                status = here.stat()
                if (status.st_dev, status.st_ino) in seen:  # where a link led before
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                folders[:] = [name for name in folders if not name.startswith(".")]
                links += [here / name for name in folders if (here / name).is_symlink()]
                found += [
                    (here / name).relative_to(folder).as_posix()
                    for name in files
                    if not name.startswith(".") and Path(name).suffix.lower() in PICTURES | VIDEOS
                ]
        waiting = sorted(links)
    return found


def _refuse(error: OSError) -> None:
    raise InputError(
        f"Expected a readable folder at {error.filename}. Got: {error.strerror}. Check its rights."
    ) from error


def read_bytes(path: Path, limits: Limits = LIMITS) -> bytes:
    """The file's bytes. Raises `PictureError` where it cannot be read, or is too large."""
    with named(str(path)):
        check_file(path, limits)
        return path.read_bytes()


class TarSource:
    """The pictures in uncompressed tar files, in the files' order.

    Each file is listed once by its headers; a picture is then read where it lies. A key is the
    path inside, after the tar's name where there are several tars.

    Raises `InputError` for a damaged or compressed tar, or one without pictures.
    """

    detail = ""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self._paths = name, tuple(paths)
        self.keys: Sequence[str] = []
        self._places: list[tuple[int, int, int]] = []
        keys = []
        for number, path in enumerate(self._paths):
            for member, start, size in _members(path):
                keys.append(plain(f"{path.name}/{member}" if len(self._paths) > 1 else member))
                self._places.append((number, start, size))
        self.keys = keys
        if not keys:
            raise InputError(
                f"Expected pictures ({' '.join(sorted(PICTURES))}) in {self._paths[0]}. Got none. "
                "Check the file."
            )

    def content(self) -> str:
        """Short hash of the pictures' sizes, and of the edges of some."""
        return spans_hash([(self._paths[n], start, size) for n, start, size in self._places])

    def read(self, index: int, limits: Limits = LIMITS) -> bytes:
        """The picture file's bytes. Raises `PictureError` where the tar ends before them."""
        number, start, size = self._places[index]
        check_bytes(size, f"{self.keys[index]} of {self._paths[number]}", limits)
        with self._paths[number].open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise PictureError(
                f"Expected {size} bytes of {self.keys[index]} in {self._paths[number]}. "
                f"Got {len(data)}. Fetch the file again."
            )
        return data


def _members(path: Path) -> list[tuple[str, int, int]]:
    """(path inside, first byte, bytes) of each picture."""
    found, last = list[tuple[str, int, int]](), -1
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0 or member.offset <= last:
                    raise tarfile.ReadError(f"{member.name} ends before it begins")
                last = member.offset
                if member.isreg() and Path(member.name).suffix.lower() in PICTURES:
                    found.append((member.name, member.offset_data, member.size))
    except Exception as error:  # OSError, TarError, RecursionError, whatever numbers in it do
        raise InputError(
            f"Expected an uncompressed tar file at {path}. Got: {brief(error)}. Unpack it first."
        ) from error
    return found
