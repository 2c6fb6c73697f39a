"""Write a file whole or not at all."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tokensieve.errors import ConfigError


def check_writable(path: str | Path) -> Path:
    """`path`, if a file may be written there. Raises `ConfigError` if not; creates nothing."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"Expected the name of a file to write. Got the directory {path}.")
    if not path.parent.is_dir():
        raise ConfigError(f"Expected a directory at {path.parent} to write {path.name} into. None.")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"Expected a writable directory. Got {path.parent}, which is not.")
    return path


def check_picture_path(path: str | Path, source: Path | None = None) -> Path:
    """`path`, if a picture may be written there and it is not the `source` itself.

    Raises `ConfigError` if not; creates nothing.
    """
    path = check_writable(path)
    if source is not None and path.resolve() == source.resolve():
        raise ConfigError(
            f"Expected another file than the picture itself. Got {path}. Name a new file."
        )
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp"}:
        raise ConfigError(
            f"Expected a picture format to write. Got '{path.name}'. Name it .png, .jpg or .webp."
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
    return f".{stem}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.part"


def left_behind(name: str) -> tuple[str, str] | None:
    """(stem, suffix) of what `name`, a `part_name`, would have become, if its process is dead.

    None for other names, for processes that live, and for those of other machines, which cannot
    be asked.
    """
    match = re.fullmatch(r"\.([\w-]+)\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.part(\.\w+)?", name)
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
        yield part
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise ConfigError(f"Expected room and rights to write {path}. Got: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """The same, written inside a folder of a `part_name` beside `path`.

    For writers that make temporary files of their own, as safetensors does: what a killed process
    leaves lies in that folder, and whose it was can be told.
    """
    folder = check_writable(path).with_name(part_name(path.stem))
    try:
        folder.mkdir(exist_ok=True)
        part = folder / path.name
        yield part
        part.chmod(0o644)  # safetensors writes what only its owner may read
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise ConfigError(f"Expected room and rights to write {path}. Got: {error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
