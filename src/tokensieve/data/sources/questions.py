"""Questions about pictures, one a line of a JSONL file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokensieve.data.pictures.decode import LIMITS, Limits
from tokensieve.data.sources.content import plain, spans_hash, whole_files
from tokensieve.data.sources.files import read_bytes
from tokensieve.errors import ConfigError, InputError, PictureError, brief
from tokensieve.fields import shown

_MEND = 'Mend the line: {"image": "a.png", "question": "..."}.'


class QuestionSource:
    """The pictures that a file of questions names, each as often as it is asked about.

    A line is {"image": "a.png", "question": "..."}; what else stands in it is let be. Pictures lie
    beside the file. A key is the picture's name and '@' with the number of its line.

    Raises `ConfigError` for a file that is not there or holds no question, `InputError` for a line
    that is wrong, with its number: before anything is written.
    """

    def __init__(self, file: str | Path) -> None:
        path = Path(file).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # not there, a folder, no UTF-8, NUL in the name
            raise ConfigError(
                f"Expected a JSONL file of questions in UTF-8 at {shown(str(file))}. Got: "
                f"{brief(error)}. Write one line a question: image, question."
            ) from error
        self.name = plain(path.stem)
        self._pictures: list[Path] = []
        self.questions: list[str] = []
        keys: list[str] = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                image, question = _read(line, f"line {number} of {path}")
                self._pictures.append(path.parent / image)
                self.questions.append(question)
                keys.append(f"{plain(image)}@{number}")
        self.keys: Sequence[str] = keys
        if not keys:
            raise ConfigError(f"Expected questions in {path}. Got none. Write one line a question.")
        asked = repr(self.questions).encode("utf-8", "backslashreplace")
        self.detail = f"questions {hashlib.sha256(asked).hexdigest()[:16]}"

    def content(self) -> str:
        """Short hash of the pictures' sizes, and of the edges of some."""
        return spans_hash(whole_files(self._pictures))

    def read(self, index: int, limits: Limits = LIMITS) -> bytes:
        """The picture file's bytes. Raises `PictureError`."""
        path = self._pictures[index]
        if "\0" in str(path) or not os.path.isfile(path):
            raise PictureError(
                f"Expected a picture at {shown(str(path))}. Got no file. Put it there."
            )
        return read_bytes(path, limits)


def _read(line: str, where: str) -> tuple[str, str]:
    """Picture and question of one line."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Expected JSON in {where}. Got: {brief(error)}. {_MEND}") from None
    texts = [told.get(name) for name in ("image", "question")] if isinstance(told, Mapping) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(
            f"Expected image and question as text in {where}. Got {shown(told)}. {_MEND}"
        )
    return str(texts[0]), str(texts[1])
