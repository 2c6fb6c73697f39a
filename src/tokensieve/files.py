"""The one room where files are written: whole or not there, and on the disk before they are named.

A kill, a power cut or a full disk leaves what was there; a disk that refuses is one line.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from tokensieve.errors import ConfigError

_LIBRARIES = ("safetensors", "pyarrow")  # their errors are no OSError
_TORCH = ("inline_container", "PytorchStreamWriter", "Parent directory")  # nor are torch.save's
_PART = r"\.([^/]+)\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.part(\.\w+)?"  # what `part_name` makes
_INSIDE = r"\.\1\.[\w-]+\.\d+\.[0-9a-f]{8}\.part(?![\w.])"  # of a folder, in itself
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # file systems that sync no folders
_STEM = 80  # characters of a name in its part's: names end at 255


@contextmanager
def refused_in_words(path: str | Path) -> Iterator[None]:
    """Raise `ConfigError` where the disk refuses what the block writes to `path`."""
    try:
        yield
    except Exception as error:
        if not _of_the_disk(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"Expected room and rights to write {_as_named(path)}. Got: {_as_named(said)}. Make "
            "room, or write elsewhere; what was there before is as it was."
        ) from error


def _as_named(text: str | Path) -> str:
    """`text` with the names that parts will get, in place of the parts'. What is written into a
    folder that is there lies, until then, in a part of the folder's name inside it."""
    told = re.sub(rf"(?<![^/'\"])([^/'\"]+)/{_INSIDE}", r"\1", str(text))
    return re.sub(rf"(?<![^/'\"]){_PART}", r"\1\4", told).rstrip(".")


def _of_the_disk(error: Exception) -> bool:
    if isinstance(error, OSError) or type(error).__module__.startswith(_LIBRARIES):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in _TORCH)


def make_folder(path: str | Path) -> Path:
    """`path`, a folder now, with those above it. Raises `ConfigError` if it cannot be one."""
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"Expected a folder at {path}. Got a file. Name another folder.")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Expected rights to make the folder {path}. Got: {error}. Name another folder."
        ) from error
    return path


@contextmanager
def appended(path: str | Path, keep: int) -> Iterator[IO[bytes]]:
    """`path`, cut to its first `keep` bytes, to add to. Raises `ConfigError` if refused."""
    with refused_in_words(path), Path(path).open("ab", buffering=0) as file:
        file.truncate(keep)
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, and missing folders above. Raises `ConfigError` if refused."""
    make_folder(Path(path).parent)
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def check_writable(path: str | Path) -> Path:
    """`path`, if a file may be written there. Raises `ConfigError` if not; creates nothing."""
    path = Path(path)
    with refused_in_words(path):  # such as a name that is too long
        folder = path.is_dir()
    if folder:
        raise ConfigError(
            f"Expected the name of a file to write. Got the directory {path}. Name a file in it."
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"Expected a directory at {path.parent} to write {path.name} into. Got none. Make it."
        )
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"Expected a writable directory. Got {path.parent}, which is not. Write elsewhere."
        )
    return path


@cache
def machine() -> str:
    """Where process numbers mean something: the host and, in a container, its own numbering."""
    try:
        numbering = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:  # no Linux
        numbering = ""
    return re.sub(r"\W+", "-", f"{platform.node()[:64]}-{numbering}", flags=re.ASCII)


def part_name(stem: str) -> str:
    """`.{stem}.{machine}.{pid}.{random}.part`: nobody else's, and whose it was can be told."""
    return f".{stem[:_STEM]}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.part"


def left_behind(name: str) -> tuple[str, str] | None:
    """(stem, suffix) of what `name`, a `part_name`, would have become, if its process is dead.

    None for other names, for processes that live, and for those of other machines, which cannot
    be asked.
    """
    match = re.fullmatch(_PART, name)
    if match is None or match[2] != machine() or _alive(int(match[3])):
        return None
    return match[1], match[4] or ""


def _alive(pid: int) -> bool:
    """Whether another process of this machine goes by that number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends well.

    What was written is on the disk before it gets its name, so that a file of that name is whole
    even after a power cut. On an exception nothing is left behind, and what `path` held before
    stays. Raises `ConfigError` where the disk refuses.
    """
    path = check_writable(path)
    part = path.with_name(f"{part_name(path.stem)}{path.suffix}")
    try:
        with refused_in_words(path):
            yield part
            _named(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """The same, written inside a folder of a `part_name` beside `path`.

    For writers that make temporary files of their own, as safetensors does.
    """
    path = check_writable(path)
    folder = path.with_name(part_name(path.stem))
    try:
        with refused_in_words(path):
            folder.mkdir(exist_ok=True)
            part = folder / path.name
            yield part
            part.chmod(0o644)  # safetensors writes what only its owner may read
            _named(part, path)
    finally:
        remove_tree(folder)


@contextmanager
def written_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `path` when the block ends well.

    In a folder that is there, files take the place of those of their names, config.json last, and
    others stay; with `replace`, for folders that are ours alone, the old one goes as a whole.
    Raises `ConfigError` where the disk refuses, and for a file of that name.
    """
    path = Path(path)
    there = path.exists()
    make_folder(path if there else path.parent)
    # Beside what is there already may be another disk, as beside a mounted folder.
    part = (path if there and not replace else path.parent) / part_name(path.name or "folder")
    try:
        with refused_in_words(path):
            part.mkdir()
            yield part
            _flush_tree(part)
            _folder_named(part, path, replace)
            _flush(path.parent)
    finally:
        remove_tree(part)


def _folder_named(part: Path, path: Path, replace: bool) -> None:
    if not path.exists():
        part.rename(path)
    elif replace:
        old = path.with_name(part_name(path.name))
        path.rename(old)
        part.rename(path)
        remove_tree(old)
    else:
        _take_over(part, path)


def _take_over(part: Path, path: Path) -> None:
    files = (file for file in part.rglob("*") if not file.is_dir())
    for file in sorted(files, key=lambda file: (file.name == "config.json", file)):
        place = path / file.relative_to(part)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
        _flush(place.parent)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours and what is in it, if it is there; what stays is no error."""
    with suppress(OSError):
        folder.rmdir()  # empty, as after all went well
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def retire(folder: Path) -> None:
    """Remove a folder of ours, its name first: a removal cut short leaves no half of it."""
    part = folder.with_name(part_name(folder.name))
    with suppress(OSError):
        folder.rename(part)
        remove_tree(part)


class Lines:
    """A file of lines that grows by whole ones. kept: what it holds at first; None: what is there.

    Raises `ConfigError` where the disk refuses; the file then ends with the line before.
    """

    def __init__(self, path: str | Path, kept: Iterable[str] | None = None) -> None:
        self.path = check_writable(path)
        if kept is not None:
            write_text(path, "".join(f"{line}\n" for line in kept))
        with refused_in_words(path):
            self._file = self.path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        """Append one line."""
        with refused_in_words(self.path):
            end = os.fstat(self._file.fileno()).st_size
            whole = f"{line}\n".encode()
            try:
                if (written := self._file.write(whole)) != len(whole):
                    raise OSError(f"{written} of {len(whole)} bytes were written")
            except OSError:
                os.truncate(self.path, end)
                raise

    def close(self) -> None:
        """Bring it to the disk and close it."""
        if not self._file.closed:
            with refused_in_words(self.path):
                os.fsync(self._file.fileno())
            self._file.close()


def _named(part: Path, path: Path) -> None:
    _flush(part)
    part.replace(path)
    _flush(path.parent)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            path.chmod(0o644)  # safetensors writes what only its owner may read
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(handle)
