"""Documents of a user's own with boxes around their text, in the layout of SROIE's receipts.

A folder holds img/NAME.jpg (or .png, .jpeg) and box/NAME.json (a list of {"box": [left, top, right,
bottom], "text": "..."}), or box/NAME.txt or .csv as SROIE has them: eight corners and the text in a
line. All in pixels of the stored picture. key/NAME.json, or .txt, may tell what it says under
company, date, address, total.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.data.pictures.decode import open_picture
from tokensieve.errors import ConfigError, InputError
from tokensieve.viz.geometry import Box

PICTURES = (".jpg", ".jpeg", ".png")
BOXES = (".json", ".txt", ".csv")
Told = list[tuple[NDArray[np.float64], str]]  # boxes of lines, and what stands in them


@dataclass(frozen=True)
class Receipt:
    """One document. lines: a box each, (left, top, right, bottom), and its text. keys: what it says
    under each."""

    name: str
    file: Path
    lines: Told
    keys: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> Image.Image:
        """Its picture. Raises `PictureError` for a broken one."""
        return open_picture(self.file)

    def where(self, value: str, beside: str = "") -> tuple[tuple[Box, ...], ...]:
        """The places that show `value`: each line that holds it or, where none does, together the
        lines that are parts of it. Of several lines, those on whose row a line holds the word
        `beside`, where there are such: a price equal to the total is not the total."""
        wanted = _plain(value)
        lines = [((float(b[0]), float(b[1]), float(b[2]), float(b[3])), _plain(text))
                 for b, text in self.lines]  # fmt: skip
        if whole := tuple((box,) for box, text in lines if wanted and _holds(text, wanted)):
            word = re.compile(rf"\b{re.escape(beside)}\b")
            named = [box for box, text in lines if beside and word.search(text)]
            return tuple(one for one in whole if _on_a_row(one[0], named)) or whole
        parts = tuple(box for box, text in lines if len(text) > 3 and text in wanted)
        return (parts,) if parts else ()

    @property
    def digest(self) -> str:
        """Changes when its picture or what is told of it does."""
        told = repr([(box.tolist(), text) for box, text in self.lines])
        return hashlib.sha256(self.file.read_bytes() + told.encode()).hexdigest()[:16]


def load_receipts(folder: Path | None, limit: int | None = None) -> list[Receipt]:
    """The documents of a folder by name, the first `limit` of them.

    Raises `ConfigError` for no folder or one without any, `InputError` for one without boxes and
    for two pictures of one name, whose boxes and records would be one.
    """
    if folder is None:
        raise ConfigError("Expected a folder of receipts. Got none. Name it: --receipts FOLDER.")
    pictures = [one for one in sorted((folder / "img").glob("*")) if one.suffix.lower() in PICTURES]
    if not pictures:
        raise ConfigError(
            f"Expected receipts as {folder}/img/*.jpg with box/*.json. Found none. Name a folder "
            "of that layout with --receipts."
        )
    for one, other in pairwise(pictures):
        if one.stem == other.stem:
            raise InputError(
                f"Expected one picture a receipt. Got {one.name} and {other.name} in {folder}/img. "
                "Rename or move one of them."
            )
    return [Receipt(one.stem, one, read_boxes(_boxes_of(folder, one.stem)), _keys(folder, one.stem))
            for one in pictures[:limit]]  # fmt: skip


def _keys(folder: Path, name: str) -> dict[str, str]:
    """What is told of a receipt; nothing where no file is there."""
    for ending in BOXES:
        if (found := folder / "key" / f"{name}{ending}").is_file():
            try:
                told = json.loads(found.read_text(encoding="utf-8", errors="replace"))
                return {str(key): str(value) for key, value in dict(told).items()}
            except (ValueError, TypeError) as problem:
                raise InputError(
                    f'Expected {{"total": "...", ...}} as JSON in {found}. Got: {problem}. Mend '
                    "the file."
                ) from None
    return {}


def _plain(text: str) -> str:
    return " ".join(text.upper().split())


def _on_a_row(box: Box, others: Sequence[Box]) -> bool:
    """Whether half of its height, or of the other's, is at the height of one of the others."""
    return any(
        min(box[3], one[3]) - max(box[1], one[1]) >= 0.5 * min(box[3] - box[1], one[3] - one[1])
        for one in others
    )


def _holds(text: str, wanted: str) -> bool:
    """Whether `wanted` stands in `text`, and not within a longer number: 9.00 not in 19.00."""
    before = r"(?<!\d)(?<!\d[.,])" if wanted[0].isdigit() else ""
    behind = r"(?![.,]?\d)" if wanted[-1].isdigit() else ""
    return re.search(before + re.escape(wanted) + behind, text) is not None


def _boxes_of(folder: Path, name: str) -> Path:
    for ending in BOXES:
        if (found := folder / "box" / f"{name}{ending}").is_file():
            return found
    raise InputError(
        f"Expected the boxes of receipt '{name}' in {folder}/box/{name}.json, .txt or .csv. Got no "
        "file. Add it, or leave the picture out."
    )


def read_boxes(path: Path) -> Told:
    """The lines of text of one document; boxes without area are left out.

    Raises `InputError` for a missing or malformed file, or one without any box.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        told = json.loads(text) if path.suffix == ".json" else list(map(_corners, _lines(text)))
        boxes: NDArray[np.float64] = np.array([entry["box"] for entry in told], dtype=float)
        texts = [str(entry.get("text", "")) for entry in told]
    except Exception as problem:  # deep lists, numbers without end, other layouts
        raise InputError(
            f"Expected boxes of text in {path}. Got: {problem!r}. Write a list of "
            '{"box": [left, top, right, bottom], "text": "..."}.'
        ) from None
    if boxes.ndim == 2 and boxes.shape[1] == 4:  # some annotations are mere lines
        real = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        if real.any():
            return [(boxes[n], texts[n]) for n in np.flatnonzero(real)]
    raise InputError(
        f"Expected boxes of four numbers, right > left, bottom > top in {path}. Got none such. "
        "Mend the file."
    )


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _corners(line: str) -> dict[str, object]:
    """A line of SROIE's own files: four corners, clockwise, and the text, which may hold commas."""
    *corners, text = line.split(",", 8)
    x, y = ([float(one) for one in corners[axis::2]] for axis in (0, 1))
    if len(x) != 4 or len(y) != 4:
        raise ValueError(f"{len(corners)} numbers before the text, not 8")
    return {"box": [min(x), min(y), max(x), max(y)], "text": text}


def words_of(told: Told) -> Told:
    """The words of lines, each with its share of the line's width by characters."""
    found: Told = []
    for (left, top, right, bottom), text in told:
        wide, start = (right - left) / max(1, len(text)), 0
        for word in text.split(" "):
            if word:
                at = left + wide * start
                found.append((np.array([at, top, at + wide * len(word), bottom]), word))
            start += len(word) + 1
    return found
