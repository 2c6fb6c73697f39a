"""Generated pictures written in LLaVA's layout: both stages of a training without a download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokensieve.data.llava.rows import PLACEHOLDER
from tokensieve.data.synth import ROTATION, SPLITS, Picture, generate
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.files import make_folder, write_text, written_whole
from tokensieve.folders import Kind, claimed, lies_in

CAPTIONS, INSTRUCT, IMAGES = "captions.json", "instruct.json", "images"
ROWS = Kind("rows in LLaVA's layout", lies_in(CAPTIONS, INSTRUCT))
_ASK = "Describe the picture.\n"
_TEXT_ONLY = 8  # of so many rows of the second stage one comes without a picture


def write_llava(out: str | Path, pictures: int, split: str = "train") -> tuple[Path, Path]:
    """`pictures` generated pictures as PNG below `out`/images, and two files of rows.

    captions.json has the layout of CC-595K: a request and what is on the picture. instruct.json
    has that of LLaVA-Instruct: several turns, the placeholder before the first question or behind
    it, and a few rows without a picture. Same arguments, same bytes.

    Raises `ConfigError` for no pictures and a folder that holds anything else, `UnknownNameError`
    for a split.
    """
    if pictures < 1:
        raise ConfigError(f"Expected at least one picture to write. Got {pictures}.")
    if split not in SPLITS:
        raise UnknownNameError.of("split", split, SPLITS)
    with claimed(out, ROWS) as folder:
        return _write(folder, pictures, split)


def _write(out: Path, pictures: int, split: str) -> tuple[Path, Path]:
    make_folder(out / IMAGES)
    captions, instruct = [], []
    for number, (kind, picture) in enumerate(_pictures(pictures, split)):
        name = f"{kind}-{number:06d}"
        with written_whole(out / IMAGES / f"{name}.png") as part:
            picture.image.save(part)
        shown = {"id": name, "image": f"{name}.png"}
        captions.append({**shown, "conversations": _caption(picture)})
        instruct.append({**shown, "conversations": _turns(picture, behind=number % 2 == 1)})
        if number % _TEXT_ONLY == _TEXT_ONLY - 1:
            instruct.append({"id": f"{name}-text", "conversations": _count(number)})
    for file, rows in ((CAPTIONS, captions), (INSTRUCT, instruct)):
        write_text(out / file, json.dumps(rows, indent=1) + "\n")
    return out / CAPTIONS, out / INSTRUCT


def _pictures(count: int, split: str) -> Iterator[tuple[str, Picture]]:
    """Pictures with questions, in the mix that nano learned from."""
    kinds = [kind for kind in ROTATION if kind != "dense"]  # dense pages ask nothing
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield kind, generate(kind, number, split)


def _said(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _caption(picture: Picture) -> list[dict[str, Any]]:
    """One turn that says what all questions are about."""
    found = " ".join(f"{asked.text} {asked.answer}" for asked in picture.questions)
    return _said(f"{_ASK}{PLACEHOLDER}", found)


def _turns(picture: Picture, behind: bool) -> list[dict[str, Any]]:
    """A turn for every question."""
    turns = [turn for asked in picture.questions for turn in _said(asked.text, asked.answer)]
    first = turns[0]["value"]
    turns[0]["value"] = f"{first}\n{PLACEHOLDER}" if behind else f"{PLACEHOLDER}\n{first}"
    return turns


def _count(number: int) -> list[dict[str, Any]]:
    return _said(f"What is the value of {number}?", f"{number}")
