"""Questions with right answers: a user's own in a JSONL file, nano's generated pictures, or what
receipts say under the keys of SROIE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.data.pictures.decode import open_picture
from tokensieve.data.synth.picture import PATCH
from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate.config import KINDS
from tokensieve.evaluate.metrics import METRICS
from tokensieve.evaluate.receipts import load_receipts
from tokensieve.evaluate.tasks import load_tasks
from tokensieve.fields import check_names, shown
from tokensieve.viz.geometry import Box

NANO, KEYS = "nano", "keys"  # the suites of those names
Region = tuple[Box, ...]
ASKED = {
    "company": "What is the name of the company?",
    "date": "What is the date?",
    "address": "What is the address of the company?",
    "total": "What is the total?",
}
NAMED = {"total": "TOTAL"}  # words on the row where a key's value stands


@dataclass(frozen=True)
class Question:
    """One question about a picture, which is opened when it is asked.

    answers: all that count as right. metric: one of `METRICS`. group: what it counts among.
    regions: places that each show a whole answer, as boxes in pixels of the picture; none where it
    is not known.
    """

    open: Callable[[], Image.Image]
    text: str
    answers: tuple[str, ...]
    metric: str
    group: str
    regions: tuple[Region, ...] = ()

    @property
    def told(self) -> str:
        """All of it but the picture, as text."""
        first = (self.text, self.answers, self.metric, self.group)
        return repr((*first, self.regions) if self.regions else first)


@dataclass(frozen=True)
class Questions:
    """All of a suite. digest: changes when any question, answer or picture does."""

    name: str
    items: tuple[Question, ...]
    digest: str


def load_questions(
    name: str, limit: int | None = None, metric: str = "exact", answered: bool = True,
    receipts: Path | None = None,
) -> Questions:  # fmt: skip
    """The suite called `name`: "nano", "keys" of the folder `receipts`, or a JSONL file; the first
    `limit` questions of each group.

    A line of the file is {"image": "a.png", "question": "...", "answer": "..."}; "answers" instead
    is a list of those that count, "metric" one of `METRICS` instead of `metric`, "group" a name to
    count by, "boxes" a list of where the answer stands, (left, top, right, bottom) in pixels of the
    picture. Pictures lie beside the file. answered=False: right answers may be missing.

    Raises `ConfigError` for a file that is not there, holds no question, or a `limit` below 1;
    `InputError` for a line or a picture that is wrong, with its number.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"Expected at least 1 question of a group. Got {limit}.")
    check_names("metric", [metric], METRICS)
    if name == NANO:
        return _nano(limit or 50)
    if name == KEYS:
        return _keys(receipts, limit)
    file = Path(name).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"Expected the suite '{NANO}', '{KEYS}' or a JSONL file of questions. Got "
            f"{shown(name)}, which is none. Write one line a question: image, question, answer."
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
        digest.update(one.told.encode())
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
    known = ("image", "question", "answer", "answers", "metric", "group", "boxes")
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
        str(metric), str(told.get("group", "all")), _region(told.get("boxes"), where),
    )  # fmt: skip
    return one, picture


def _region(told: Any, where: str) -> tuple[Region, ...]:
    """The one region that a line tells, if any."""
    if told is None:
        return ()
    try:
        boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in told)
        if not boxes or not all(b[0] < b[2] and b[1] < b[3] for b in boxes):
            raise ValueError("without area")
    except (TypeError, ValueError):
        raise InputError(
            f"Expected boxes as [[left, top, right, bottom], ...] in {where}, right > left and "
            f"bottom > top. Got {shown(told)}. Mend the line."
        ) from None
    return (boxes,)


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
                items.append(Question(item.image.copy, asked.text, (asked.answer,), "exact", group,
                                      _of_mask(item.answer_mask)))  # fmt: skip
    return Questions(NANO, tuple(items), digest.hexdigest()[:16])


def _of_mask(mask: NDArray[np.bool_] | None) -> tuple[Region, ...]:
    """The patches of a mask as boxes."""
    if mask is None or not mask.any():
        return ()
    places = np.argwhere(mask) * PATCH
    return (tuple((float(x), float(y), float(x + PATCH), float(y + PATCH)) for y, x in places),)


def _keys(folder: Path | None, limit: int | None) -> Questions:
    """What receipts say under the keys that SROIE asks for."""
    items, digest = list[Question](), hashlib.sha256()
    for receipt in load_receipts(folder, limit):
        for key, value in receipt.keys.items():
            if key in ASKED and value:
                one = Question(receipt.open, ASKED[key], (value,), "anls", key,
                               receipt.where(value, NAMED.get(key, "")))  # fmt: skip
                digest.update((receipt.digest + one.told).encode())
                items.append(one)
    if not items:
        raise ConfigError(
            f"Expected what receipts say in {folder}/key/NAME.json: company, date, address, total. "
            "Got none. Add the files."
        )
    return Questions(KEYS, tuple(items), digest.hexdigest()[:16])
