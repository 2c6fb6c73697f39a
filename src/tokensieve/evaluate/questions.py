"""Questions with right answers: a user's own in a JSONL file, or nano's generated pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.data.pictures.decode import open_picture
from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate.config import KINDS
from tokensieve.evaluate.metrics import METRICS
from tokensieve.evaluate.tasks import load_tasks
from tokensieve.fields import check_names, shown

NANO = "nano"  # the suite of that name


@dataclass(frozen=True)
class Question:
    """One question about a picture, which is opened when it is asked.

    answers: all that count as right. metric: one of `METRICS`. group: what it counts among.
    """

    open: Callable[[], Image.Image]
    text: str
    answers: tuple[str, ...]
    metric: str
    group: str


@dataclass(frozen=True)
class Questions:
    """All of a suite. digest: changes when any question, answer or picture does."""

    name: str
    items: tuple[Question, ...]
    digest: str


def load_questions(
    name: str, limit: int | None = None, metric: str = "exact", answered: bool = True
) -> Questions:
    """The suite called `name`: "nano", or a JSONL file; the first `limit` questions of each group.

    A line of the file is {"image": "a.png", "question": "...", "answer": "..."}; "answers" instead
    is a list of those that count, "metric" one of `METRICS` instead of `metric`, "group" a name to
    count by. Pictures lie beside the file. answered=False: right answers may be missing.

    Raises `ConfigError` for a file that is not there, holds no question, or a `limit` below 1;
    `InputError` for a line or a picture that is wrong, with its number.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"Expected at least 1 question of a group. Got {limit}.")
    check_names("metric", [metric], METRICS)
    if name == NANO:
        return _nano(limit or 50)
    file = Path(name).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"Expected the suite '{NANO}' or a JSONL file of questions. Got {shown(name)}, which "
            "is none. Write one line a question: image, question, answer."
        )
    lines = file.read_text(encoding="utf-8").splitlines()
    items, digest, seen = list[Question](), hashlib.sha256(), dict[str, int]()
    pictures = dict[Path, bytes]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        one, picture = _read(file, number, line, metric, answered)
        seen[one.group] = seen.get(one.group, 0) + 1
        if limit is not None and seen[one.group] > limit:
            continue
        if picture not in pictures:
            pictures[picture] = hashlib.sha256(picture.read_bytes()).digest()
        digest.update(repr((one.text, one.answers, one.metric, one.group)).encode())
        digest.update(pictures[picture])
        items.append(one)
    if not items:
        raise ConfigError(f"Expected questions in {file}. Got none. Write one line a question.")
    return Questions(file.stem, tuple(items), digest.hexdigest()[:16])


def _read(file: Path, number: int, line: str, metric: str, answered: bool) -> tuple[Question, Path]:
    """Question and picture of one line."""
    where = f"line {number} of {file}"
    try:
        told = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"Expected JSON in {where}. Got: {error}. Mend the line.") from None
    if not isinstance(told, Mapping):
        raise InputError(f"Expected an object in {where}. Got {shown(told)}. Mend the line.")
    known = ("image", "question", "answer", "answers", "metric", "group")
    check_names(f"field in {where}", told, known)
    answers = told.get("answers", [told["answer"]] if "answer" in told else None)
    texts = [told.get("image"), told.get("question")]
    right = _texts(answers) or (answers is None and not answered)
    if not all(isinstance(text, str) and text.strip() for text in texts) or not right:
        raise InputError(
            f"Expected image, question and answer as text in {where}, or answers as a list. Got "
            f"{shown(dict(told))}. Mend the line."
        )
    metric = told.get("metric", metric)
    check_names(f"metric in {where}", [metric], METRICS)
    picture = file.parent / str(told["image"])
    if not picture.is_file():
        raise InputError(f"Expected a picture at {picture}, named in {where}. Got no file.")
    one = Question(
        partial(open_picture, picture), str(told["question"]), tuple(map(str, answers or ())),
        str(metric), str(told.get("group", "all")),
    )  # fmt: skip
    return one, picture


def _texts(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and bool(values)
        and all(isinstance(value, str | int | float) for value in values)
    )


def _nano(pictures: int) -> Questions:
    """Of so many held-out generated pictures of each kind a question a topic, as the pages of
    results ask them."""
    items, digest = list[Question](), hashlib.sha256()
    for kind in KINDS:
        for task in load_tasks(kind, "test", pictures):
            group = f"{kind}: {task.topic}"
            for item in task.items:
                asked = item.question
                digest.update(item.image.tobytes() + repr(asked).encode())
                items.append(Question(item.image.copy, asked.text, (asked.answer,), "exact", group))
    return Questions(NANO, tuple(items), digest.hexdigest()[:16])
