"""Rows of a JSON or JSONL file in LLaVA's layout, each checked before anything is learned.

A row may hold anything that JSON can: one that is too deep, holds text that is no text (a lone
surrogate), numbers without end or a path that leads out of the folder is a bad row as any other.

A row is {"id": ..., "image": "relative/path.jpg", "conversations": [{"from": "human", "value":
"<image>\\n..."}, {"from": "gpt", "value": "..."}, ...]}; without "image" it is text only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokensieve.data.llava.values import shown, values
from tokensieve.data.sources.content import inside
from tokensieve.errors import InputError, RowError, brief

PLACEHOLDER = "<image>"  # of the layout; models have their own
_ROLES = ("human", "gpt")
_SHOWN = 3  # bad rows that a refusal shows


@dataclass(frozen=True)
class Row:
    """One conversation.

    number: place in the file from 1 on, the line of a JSONL file. picture: its file, None for text
    only. turns: (question, answer), where one question of a row with a picture has the placeholder.
    """

    number: int
    id: str
    picture: Path | None
    turns: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"row {self.number} (id {self.id})"


@dataclass
class Found:
    """The rows of a file that can be learned from, and why others cannot."""

    file: Path
    rows: list[Row]
    bad: list[RowError] = field(default_factory=list)


def read_rows(file: str | Path, images: str | Path | None = None) -> Found:
    """Every row of `file`, pictures looked up in the folder `images`; none is dropped in silence.

    A picture's file has to be there; it is not opened. Raises `InputError` where the file itself
    is missing, is no JSON, or holds no list of rows.
    """
    file = Path(file)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise InputError(
            f"Expected a folder of pictures. Got {folder}, which is none. Name it with --images."
        )
    is_file = cache(_is_file)  # several rows may share a picture
    found = Found(file, [])
    for number, value in values(file):
        try:
            found.rows.append(_row(value, number, folder, is_file))
        except RowError as error:
            found.bad.append(RowError(error.reason, f"{file}, {error}"))
    if not found.rows and not found.bad:
        raise InputError(f"Expected rows in {file}. Got none. Name a file with conversations.")
    return found


def refuse(found: Found) -> None:
    """Raise `InputError` that says how many rows are bad, why, and what to do; none: do nothing."""
    if not found.bad:
        return
    first = " ".join(f"{error}" for error in found.bad[:_SHOWN])
    more = len(found.bad) - _SHOWN
    rest = f" And {more} more." if more > 0 else ""
    raise InputError(
        f"Expected rows that can all be learned from in {found.file}. Got {len(found.bad)} of "
        f"{len(found.bad) + len(found.rows)} that cannot ({told(reasons(found.bad))}). "
        f"{first}{rest} Repair them, or leave them out with --skip-bad-rows."
    )


def reasons(bad: Sequence[RowError]) -> dict[str, int]:
    """How many rows are bad for which reason."""
    return dict(sorted(Counter(error.reason for error in bad).items()))


def told(counts: Mapping[str, int]) -> str:
    """Counts by reason as text."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def _row(value: Any, number: int, folder: Path | None, is_file: Callable[[Path], bool]) -> Row:
    """A row, checked. Raises `RowError`."""
    if not isinstance(value, dict):
        wrong = isinstance(value, Exception)
        got = f"no JSON ({brief(value)})" if wrong else type(value).__name__
        raise RowError("layout", f"row {number}: expected an object, got {got}. Repair the line.")
    own = value.get("id")
    own = brief(own) if isinstance(own, str) else shown(own)
    name = f"row {number} (id {own})"
    picture, turns = value.get("image"), value.get("conversations")
    if picture is not None and not (isinstance(picture, str) and picture):
        raise RowError(
            "layout",
            f"{name}: expected `image` as one relative path, got {shown(picture)}. Name one.",
        )
    pairs = _turns(name, turns)
    _check_placeholders(name, pairs, picture)
    path = None if picture is None else _path(name, picture, folder, is_file)
    return Row(number, own, path, pairs)


def _path(name: str, picture: str, folder: Path | None, is_file: Callable[[Path], bool]) -> Path:
    """Where a row's picture is. Raises `RowError` unless it is there, below the folder."""
    told = brief(picture)
    if folder is None:
        raise RowError(
            "picture missing", f"{name}: it names {told}. Say where pictures are: --images."
        )
    path = inside(folder, picture)
    if path is None:
        raise RowError(
            "picture outside",
            f"{name}: expected a picture below {folder}, got {told}. Move it there.",
        )
    if not is_file(path):
        raise RowError(
            "picture missing",
            f"{name}: no picture file {folder}/{told}. Fetch it, or check --images.",
        )
    return path


def _is_file(path: Path) -> bool:
    """Whether a file is there; a path no file can have leads to none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _turns(name: str, turns: Any) -> tuple[tuple[str, str], ...]:
    """(question, answer) pairs, stripped. Raises `RowError`."""
    wanted = "expected `conversations` as a list of {from, value}"
    if not isinstance(turns, list) or not turns:
        raise RowError("layout", f"{name}: {wanted}, got {type(turns).__name__}. Write them so.")
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise RowError("layout", f"{name}: {wanted}, got {shown(turn)}. Write them so.")
        if turn.get("from") != _ROLES[number % 2]:
            raise RowError(
                "turns",
                f"{name}: expected turns of human and gpt by turns, human first. Got "
                f"{shown(turn.get('from'))} as turn {number + 1}. Put them in order.",
            )
    if len(turns) % 2:
        raise RowError("turns", f"{name}: expected gpt to have the last word. Got human. Cut it.")
    said = [turn["value"].strip() for turn in turns]
    for number, text in enumerate(said, 1):
        if not _is_text(text):
            raise RowError(
                "no text",
                f"{name}: expected Unicode text. Got a lone surrogate in turn {number}. Repair it.",
            )
    for number, answer in enumerate(said[1::2], 1):
        if not answer:
            raise RowError("empty answer", f"{name}: answer {number} is empty. Cut the turn.")
    return tuple(zip(said[::2], said[1::2], strict=True))


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_placeholders(name: str, turns: tuple[tuple[str, str], ...], picture: str | None) -> None:
    """Raise `RowError` unless there is one placeholder for a picture and none without."""
    if any(PLACEHOLDER in answer for _, answer in turns):
        raise RowError("placeholder", f"{name}: {PLACEHOLDER} in an answer. Take it out.")
    count = sum(question.count(PLACEHOLDER) for question, _ in turns)
    if count == (picture is not None):
        return
    if picture is None:
        raise RowError(
            "placeholder", f"{name}: {PLACEHOLDER} without a picture. Add `image`, or take it out."
        )
    raise RowError(
        "placeholder",
        f"{name}: expected one {PLACEHOLDER} for its picture. Got {count}. Write it once, in the "
        "question that is about it.",
    )
