"""The pictures that ship with the package: one of each generated kind, with questions and answers.

`python -m tokensieve.data.synth.shipped DIRECTORY` makes them from the generator's test split.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tokensieve.assets import asset_path
from tokensieve.data.pictures.decode import open_picture
from tokensieve.data.synth import Question, generate
from tokensieve.files import make_folder, write_text, written_whole
from tokensieve.folders import Kind, check_ours, lies_in

# name of the file -> (kind, seed): the first seed of a range no evaluation reads
PICTURES = {
    "page": ("plain", 900_000),
    "cluttered": ("cluttered", 900_000),
    "scene": ("scene", 900_000),
    "mixed": ("mixed", 900_000),
}
QUESTIONS = 3  # of each picture


@dataclass(frozen=True)
class Shipped:
    """A shipped picture and its questions as (question, right answer)."""

    name: str
    path: Path
    image: Image.Image
    questions: tuple[tuple[str, str], ...]


def shipped_pictures() -> list[Shipped]:
    """All of them, in the order of `PICTURES`."""
    folder = asset_path("pictures")
    found = []
    for name in PICTURES:
        told = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        path = folder / f"{name}.png"
        pairs = tuple((one["question"], one["answer"]) for one in told["questions"])
        found.append(Shipped(name, path, open_picture(path), pairs))
    return found


def make(folder: Path) -> None:
    """Write every picture and its questions into `folder`."""
    check_ours(folder, Kind("the shipped pictures", lies_in(*(f"{n}.png" for n in PICTURES)), True))
    make_folder(folder)
    for name, (kind, seed) in PICTURES.items():
        picture = generate(kind, seed, "test")
        asked = _spread(picture.questions)
        told = {
            "kind": kind,
            "seed": seed,
            "split": "test",
            "questions": [{"question": q.text, "answer": q.answer} for q in asked],
        }
        with written_whole(folder / f"{name}.png") as part:
            picture.image.save(part, optimize=True)
        write_text(folder / f"{name}.json", json.dumps(told, indent=2) + "\n")


def _spread(questions: Sequence[Question]) -> list[Question]:
    """The first `QUESTIONS`, taking turns between what they are about."""
    asked: dict[str, int] = {}
    turns = []
    for question in questions:
        turns.append(asked.get(question.about, 0))
        asked[question.about] = turns[-1] + 1
    order = sorted(range(len(questions)), key=lambda i: (turns[i], i))
    return [questions[i] for i in order[:QUESTIONS]]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
