"""Questions about pages as batches for the reader: its characters, and what must be shown.

B batch, V visual tokens shown, T text tokens of all questions of a page, L = 576 patches.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lab.nano.packing import Packed, Text, laid_out
from lab.nano.vocabulary import ANSWER, SPECIAL
from lab.nano2.labels import GRID, PATCH
from lab.nano2.pages import Page
from lab.nano2.runs import Run, ends, part_of, runs_of
from lab.nano2.words import CHARS

PATCHES = GRID * GRID
VOCABULARY = {token: number for number, token in enumerate((*SPECIAL, " ", *CHARS))}
EOS = VOCABULARY["</s>"]
WHOLE = 288  # from so many tokens on, what no character answers is asked too
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """`ids` of question, marker, answer and end; `begin` of the answer; `named` letters of the
    question; `needs`, the patches that hold key and answer: none for a scene."""

    ids: list[int]
    begin: int
    named: int
    needs: list[int]


@dataclass(frozen=True)
class Example:
    """A page of the cache: its row, kind, questions, the patches with text, and its lines."""

    row: int
    kind: str
    asked: list[Question]
    text: list[int]
    runs: list[Run]


def patches_of(page: Page, numbers: tuple[int, ...]) -> list[int]:
    """The patches in which those characters of a page lie."""
    cells = np.floor(page.places[list(numbers)] / PATCH).astype(int).clip(0, GRID - 1)
    return sorted({int(y * GRID + x) for x, y in cells})


def questions_of(page: Page) -> dict[str, Any]:
    """Of a page, as JSON: its kind, its patches with text, its questions, its lines."""
    asked = [
        [one.question, one.answer, patches_of(page, (*one.key, *one.value))] for one in page.asked
    ]
    text = patches_of(page, tuple(range(len(page.codes))))
    return {"kind": page.kind, "text": text, "asked": asked, "runs": runs_of(page)}


def example(row: int, entry: dict[str, Any], vary: bool = False) -> Example:
    """The example that `questions_of` described; `vary`: a key is asked for in small letters or in
    capitals now and then, however it is printed."""
    asked = []
    for question, answer, needs in entry["asked"]:
        turn = zlib.crc32(f"{row}/{question}/{answer}".encode()) % 5 if vary and needs else 2
        said = question.lower() if turn == 0 else question.upper() if turn == 1 else question
        before = [VOCABULARY[char] for char in said + "?"] + [VOCABULARY[ANSWER]]
        ids = [*before, *(VOCABULARY[char] for char in answer), EOS]
        asked.append(Question(ids, len(before), len(said) if needs else 0, needs))
    runs = [Run(*run) for run in entry.get("runs", ())]
    return Example(row, entry["kind"], asked, entry["text"], runs)


def askable(one: Example, tokens: int) -> list[Question]:
    """What can be asked where so many tokens are shown."""
    return [
        question
        for question in one.asked
        if (len(question.needs) <= tokens and question.needs) or tokens >= WHOLE
    ]


def read_on(rng: Generator, one: Example, times: int) -> list[Question]:
    """Up to `times` beginnings of lines of the page, each with how its line goes on."""
    found = []
    for _ in range(times if one.runs else 0):
        if (part := part_of(rng, one.runs)) is None:
            continue
        given, read, needs = part
        ids = [*(VOCABULARY[char] for char in given), VOCABULARY[ANSWER]]
        ids += [VOCABULARY[char] for char in read]
        ends_there = [EOS] if ends(one.runs, given, read) else []
        found.append(Question(ids + ends_there, len(given) + 1, len(given), needs))
    return found


def show(
    rng: Generator, one: Example, tokens: int, questions: int, on: int = 0
) -> tuple[Ints, list[Question]]:
    """Which patches to show, ascending, and what to ask: in random order while what is needed
    fits, then up to `on` lines to read on; then other text, then paper."""
    can = askable(one, tokens)
    order = [can[k] for k in rng.permutation(len(can))]
    lines = read_on(rng, one, on)
    if tokens >= PATCHES:
        return np.arange(PATCHES), order[:questions] + lines
    shown: set[int] = set()
    chosen = list[Question]()
    for group, most in ((order, questions), (lines, questions + on)):
        for question in group:
            if len(shown.union(question.needs)) <= tokens and len(chosen) < most:
                shown.update(question.needs)
                chosen.append(question)
    for others in (one.text, range(PATCHES)):
        rest = rng.permutation(np.setdiff1d(np.array(others, dtype=np.int64), sorted(shown)))
        shown.update(rest[: tokens - len(shown)].tolist())
    return np.array(sorted(shown), dtype=np.int64), chosen


def text_of(question: Question, key_weight: float, tokens: int) -> Text:
    """All of an answer counts, and a little the letters of the question."""
    size = len(question.ids) - 1
    weights = np.zeros(size, np.float32)
    weights[: max(0, question.named - 1)] = key_weight
    weights[question.begin - 1 :] = 1
    return Text(question.ids, weights, np.zeros((size, tokens), bool))


def pack(
    rng: Generator,
    examples: list[Example],
    tokens: int,
    questions: int,
    key_weight: float,
    renumber: float = 0.5,
    on: int = 0,
) -> Packed:
    """A batch; visual positions run from 0 for a share `renumber` and else are the patches'."""
    shown = [show(rng, one, tokens, questions, on) for one in examples]
    anew = (rng.random(len(examples)) < renumber).tolist()
    texts = [[text_of(one, key_weight, tokens) for one in chosen] for _, chosen in shown]
    return laid_out(
        [one.row for one in examples], [kept for kept, _ in shown], anew, texts, PATCHES
    )
