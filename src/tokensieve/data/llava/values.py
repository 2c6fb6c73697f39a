"""The values of a file of rows, one by one, and strangers' values as text that can be shown.

One that Python cannot hold (too deep, a number without end, no JSON at all) is one bad value, not
the end of the file.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokensieve.errors import InputError, brief

_DIGITS = 300  # of a whole number; ids have fewer
_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*")


def values(file: Path) -> Iterator[tuple[int, Any]]:
    """(number, row as JSON gives it) of every row; one that is no JSON as its error."""
    try:
        if file.suffix.lower() == ".jsonl":
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _parsed(line)
            return
        text = file.read_text(encoding="utf-8")
        if not text.lstrip().startswith("["):
            got = type(json.loads(text)).__name__
            raise InputError(
                f"Expected a list of rows in {file}. Got {got}. See "
                "docs/guides/train-fusion.md for the layout."
            )
        yield from enumerate(_elements(text), 1)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"Expected conversations as JSON in {file}. Got: {brief(error)}. Fetch the file "
            "again, or name it .jsonl if every line is a row."
        ) from error


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"), parse_int=_number)
    except (ValueError, RecursionError) as error:
        return error


def _elements(text: str) -> Iterator[Any]:
    """The elements of the list that `text` is; one that Python cannot hold as its error.

    Raises `ValueError` where the text is no JSON.
    """
    decode = json.JSONDecoder(parse_int=_number).raw_decode
    at = _after_space(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        _check_end(text, at + 1)
        return
    while True:
        value: Any
        try:
            value, at = decode(text, at)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            value, at = error, _skipped(text, at)
        yield value
        at = _after_space(text, at)
        if text[at : at + 1] == "]":
            _check_end(text, at + 1)
            return
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _after_space(text, at + 1)


def _skipped(text: str, at: int) -> int:
    """The place behind the element that begins at `at`, found by its brackets alone."""
    depth = 0
    for match in _MARKS.finditer(text, at):
        mark = match.group()
        depth += (mark in "[{") - (mark in "]}")
        if depth < 0 or (depth == 0 and mark == ","):
            return match.start()
    raise json.JSONDecodeError("Expecting ']'", text, len(text))


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _check_end(text: str, at: int) -> None:
    if (end := _after_space(text, at)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _number(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def shown(value: Any) -> str:
    """Any value of JSON as an error can show it, however deep."""
    return brief(reprlib.repr(value))
