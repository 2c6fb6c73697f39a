"""Folders that a user names: whose they are, and one run at a time in them.

A run marks what it begins. Before it writes into a folder, or removes anything there, the folder
has to be new, empty or marked with the same kind of content; and no other run may be at it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokensieve.errors import ConfigError
from tokensieve.files import left_behind, make_folder, refused_in_words, remove_tree, write_text

if sys.platform != "win32":
    import fcntl

MARK = "tokensieve.json"
LOCK = ".tokensieve.lock"


class FolderNote(UserWarning):
    """A folder of before the marks is taken for what it looks like."""


class FolderBusyError(ConfigError):
    """Another run is at the folder, or at that part of the work."""


@dataclass(frozen=True)
class Kind:
    """What a folder holds. seen: whether one without our mark does, by what lies in it; None: no.

    own: the record that its writer puts there first is the mark; no other is made.
    """

    name: str
    seen: Callable[[Path], bool] | None = None
    own: bool = False


def lies_in(*names: str) -> Callable[[Path], bool]:
    """For `Kind.seen`: whether one of these names lies in a folder."""
    return lambda folder: any((folder / name).exists() for name in names)


def told_in(name: str, *keys: str) -> Callable[[Path], bool]:
    """For `Kind.seen`: whether the JSON file `name` in a folder has `keys`, one in the other."""

    def seen(folder: Path) -> bool:
        try:
            told = json.loads((folder / name).read_text(encoding="utf-8"))
            for key in keys:
                told = told[key]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        return True

    return seen


def check_ours(folder: str | Path, kind: Kind) -> None:
    """Raise `ConfigError` unless `folder` is new, empty or of this kind. Changes nothing."""
    folder = Path(folder)
    with refused_in_words(folder):  # such as a folder that may not be looked into
        if folder.exists() and not folder.is_dir():
            raise ConfigError(
                f"Expected a folder to write to. Got the file {folder}. Name another --out."
            )
        names = _names(folder)
    if not names:
        return
    found = _marked(folder)
    if found == kind.name or (found is None and kind.seen is not None and kind.seen(folder)):
        return
    what = f"{found}" if found else f"other files, such as {min(names)}"
    again = "" if kind.own and kind.seen is None else ", or one begun as that"
    raise ConfigError(
        f"Expected a new or empty folder for {kind.name}{again}. Got {folder}, which holds {what}; "
        "nothing was changed in it. Choose another --out."
    )


@contextmanager
def claimed(folder: str | Path, kind: Kind, share: str | None = None) -> Iterator[Path]:
    """`folder`, made where it is missing, marked, and locked while the block runs.

    share: what of the work this process does, where several do parts of one run; a part is done
    by one of them at a time. Parts that dead processes left half written are removed.

    Raises `ConfigError` for a folder of others, `FolderBusyError` where another run is at it.
    """
    folder = Path(folder)
    check_ours(folder, kind)
    new = not folder.exists()
    make_folder(folder)
    try:
        with _locked(folder, share):
            check_ours(folder, kind)  # another may have begun it in between
            if not kind.own:
                mark(folder, kind)
            if share is None:
                _sweep(folder)
            yield folder
    finally:
        if new:
            _forget_unused(folder)


def _names(folder: Path) -> set[str]:
    """What lies in `folder`, but for locks and what processes write just now."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {n for n in names if not (n.startswith(LOCK) or (n[0] == "." and ".part" in n))}


def _marked(folder: Path) -> str | None:
    """The kind that the mark in `folder` tells; None without a mark."""
    try:
        told = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return str(told["kind"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"a {MARK} that cannot be read"


def mark(folder: Path, kind: Kind) -> None:
    """Mark `folder`, made where it is missing, unless it is marked. Raises `ConfigError`."""
    check_ours(folder, kind)
    if _marked(folder) is not None:
        return
    if _names(folder):
        warnings.warn(
            f"{folder} has no mark of ours; what lies in it looks like {kind.name}, so it is gone "
            "on with and marked.", FolderNote, stacklevel=4,
        )  # fmt: skip
    write_text(folder / MARK, json.dumps({"kind": kind.name}) + "\n")


def _sweep(folder: Path) -> None:
    for path in (*folder.glob(".*.part*"), *folder.glob(f"{LOCK}.*")):
        if not path.name.startswith(LOCK) and left_behind(path.name) is None:
            continue
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def _forget_unused(folder: Path) -> None:
    """Remove a folder that was made here and that holds nothing but its mark."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {MARK}:
        return
    with suppress(OSError):
        (folder / MARK).unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def _locked(folder: Path, share: str | None) -> Iterator[None]:
    """The kernel's lock, which ends with the process however it ends."""
    if sys.platform == "win32":  # no such locks: runs are not kept apart there
        yield
        return
    with ExitStack() as held:
        held.enter_context(_lock(folder / LOCK, alone=share is None))
        if share is not None:
            held.enter_context(_lock(folder / f"{LOCK}.{share}", alone=True))
        yield


@contextmanager
def _lock(path: Path, *, alone: bool) -> Iterator[None]:
    handle = _taken(path, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    if handle is None:
        yield
        return
    _close_in_children()
    _held.add(handle)
    try:
        told = json.dumps({"pid": os.getpid(), "host": platform.node()})
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, told.encode(), 0)
        yield
    finally:
        if handle in _held:  # not in a child, where it is closed
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the last one cleans up
                path.unlink(missing_ok=True)
            _held.discard(handle)
            os.close(handle)


_held: set[int] = set()


@cache
def _close_in_children() -> None:
    """Locks end with this process: a worker that outlives it must not hold them on."""
    os.register_at_fork(after_in_child=_close_all)


def _close_all() -> None:
    while _held:
        os.close(_held.pop())


def _taken(path: Path, kind: int) -> int | None:
    """The open, locked file; None where the file system has no locks."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"Expected room and rights to write into {path.parent}. Got: {error}. Choose "
                "another --out."
            ) from error
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise FolderBusyError(
                f"Expected a folder that no other run is at. Got {path.parent}, which {_who(path)} "
                "is writing into. Wait for it, stop it, or choose another --out."
            ) from error
        except FileNotFoundError:  # its last holder has removed it just now
            pass
        except OSError:
            os.close(handle)
            return None
        os.close(handle)


def _who(path: Path) -> str:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(told['pid'])} on {str(told['host'])[:99]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
