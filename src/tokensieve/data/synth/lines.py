"""Key-value lines `KK:ddd` set in fixed cells on (nearly) the patch grid.

G: patches per side. A line has 6 characters; a cell is 12 or 24 pixels wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tokensieve.data.synth.canvas import Canvas, Colour, Tag
from tokensieve.data.synth.glyphs import glyph, lining_faces
from tokensieve.data.synth.picture import (
    GRID,
    IGNORE,
    KEY_LETTERS,
    PATCH,
    PLACES,
    SIZE,
    Question,
)

Busy = NDArray[np.bool_]
CELLS = {12: (8, 10), 24: (15, 20)}  # cell width: least and greatest cap height
SHIFT = (-2, 1)  # vertical shift in pixels; the middle of capitals lies half a pixel low
PLACE_QUESTIONS = ("Where is {}?", "Where is {} located?")
PLACED = 3  # places asked for on a page, at most
TEXT_QUESTIONS = ("What is {}?", "What is the value of {}?", "Value of {}?", "Read {}.")


@dataclass(frozen=True)
class Line:
    """A placed line: `text`, `cell` width, `cap` height, left `x` and `baseline` in pixels,
    font `face`, `ink` colour, and the patch rectangle `box` (top, left, bottom, right)."""

    text: str
    cell: int
    cap: int
    x: int
    baseline: int
    face: int
    ink: Colour
    box: tuple[int, int, int, int]


def ink_colour(rng: Generator, paper: Colour) -> Colour:
    """A dark ink, or a light one on dark paper, sometimes coloured."""
    dark = sum(paper) / 3 > 120
    base = rng.uniform(0, 70) if dark else rng.uniform(205, 255)
    hue = rng.uniform(-1, 1, 3) * (50 if rng.random() < 0.35 else 8)
    red, green, blue = np.clip(base + hue, 0, 255)
    return (float(red), float(green), float(blue))


def draw_texts(rng: Generator, count: int) -> list[str]:
    """`count` texts `KK:ddd` with different keys."""
    codes = rng.choice(len(KEY_LETTERS) ** 2, size=count, replace=False)
    keys = [KEY_LETTERS[c // len(KEY_LETTERS)] + KEY_LETTERS[c % len(KEY_LETTERS)] for c in codes]
    return [f"{key}:{int(rng.integers(1000)):03d}" for key in keys]


def slots(rng: Generator, rows: int, cols: int) -> list[tuple[int, int]]:
    """Patch positions (row, column) to try, in order: two columns of a page, or anywhere."""
    row_range, col_range = np.arange(GRID - rows + 1), np.arange(GRID - cols + 1)
    if cols <= 8 and rng.random() < 0.6:
        first, second = int(rng.integers(0, 3)), int(rng.integers(8, GRID - cols + 1))
        col_range = np.array([first, second])
        if rng.random() < 0.4:
            row_range = row_range[int(rng.integers(2)) :: 2]
    cells = [(int(r), int(c)) for r in row_range for c in col_range]
    return [cells[i] for i in rng.permutation(len(cells))]


def place_lines(
    rng: Generator,
    busy: Busy,
    count: int,
    unseen: bool,
    papers: NDArray[np.float32],
    patches: int = GRID * GRID,
) -> list[Line]:
    """Place up to `count` lines on free patches, marking them in `busy` (changed in place).

    No line is begun once `patches` are taken. `papers` (S, S, 3) gives the paper below, so that
    the ink can be read.
    """
    usual = int(rng.choice([12, 12, 12, 12, 24]))
    face_pool, one_face = lining_faces(unseen), rng.random() < 0.6
    face = int(rng.choice(face_pool))
    page_dy = int(rng.integers(-2, 3))
    lines: list[Line] = []
    mean_rgb = papers.reshape(GRID, PATCH, GRID, PATCH, 3).mean((1, 3))
    even = mean_rgb.mean(2)
    tries = {cell: slots(rng, -(-cell // PATCH), -(-6 * cell // PATCH)) for cell in CELLS}
    for text in draw_texts(rng, count):
        if sum((b - t) * (r - left) for t, left, b, r in (line.box for line in lines)) >= patches:
            break
        cell = usual if rng.random() < 0.85 else int(rng.choice(list(CELLS)))
        rows, cols = -(-cell // PATCH), -(-6 * cell // PATCH)
        box = take_slot(tries[cell], busy, even, rows, cols)
        if box is None:
            continue
        if not one_face:
            face = int(rng.choice(face_pool))
        cap = int(rng.integers(CELLS[cell][0], CELLS[cell][1] + 1))
        x = box[1] * PATCH + int(rng.integers(-2, 3))
        shift = int(np.clip(page_dy + rng.integers(-1, 2), *SHIFT))
        middle = box[0] * PATCH + cell // 2 + shift
        below = mean_rgb[box[0] : box[2], box[1] : box[3]].mean((0, 1))
        ink = ink_colour(rng, (float(below[0]), float(below[1]), float(below[2])))
        lines.append(Line(text, cell, cap, x, middle + (cap + 1) // 2, face, ink, box))
    return lines


def take_slot(
    tries: list[tuple[int, int]], busy: Busy, light: NDArray[np.float32], rows: int, cols: int
) -> tuple[int, int, int, int] | None:
    """The first free patch rectangle among `tries`, marked busy with one patch of gap beside.

    Rectangles whose paper `light` (G, G) varies by more than 60 are passed over: one ink
    cannot be read on all of it.
    """
    while tries:
        row, col = tries.pop()
        wide = np.s_[row : row + rows, max(0, col - 1) : col + cols + 1]
        if not busy[wide].any() and np.ptp(light[row : row + rows, col : col + cols]) < 60:
            busy[row : row + rows, col : col + cols] = True
            return (row, col, row + rows, col + cols)
    return None


def draw_line(canvas: Canvas, line: Line, number: int) -> None:
    """Set the six characters of `line`, each centred in its cell."""
    for index, char in enumerate(line.text):
        shape = glyph(line.face, char, line.cap, max_width=line.cell)
        x = line.x + index * line.cell + (line.cell - shape.alpha.shape[1]) // 2
        key = line.text[:2]
        canvas.put(shape, x, min(line.baseline, SIZE + 2), line.ink, Tag(char, number, index, key))


def text_question(rng: Generator, line: Line, number: int) -> Question:
    """A question for the value of `line`, in one of four wordings."""
    wording = TEXT_QUESTIONS[int(rng.integers(len(TEXT_QUESTIONS)))]
    return Question(wording.format(line.text[:2]), line.text[3:], "text", "text", number)


def quarter(line: Line) -> int:
    """The quarter of the page that holds `line`, a number in PLACES; IGNORE where its middle is
    within a patch of two quarters' border."""
    top, left, bottom, right = line.box
    down, across = (top + bottom - GRID) / 2, (left + right - GRID) / 2
    if min(abs(down), abs(across)) < 1:
        return IGNORE
    return 2 * (down > 0) + (across > 0)


def place_questions(rng: Generator, lines: list[Line]) -> list[Question]:
    """Where on the page up to PLACED of the keys are."""
    out: list[Question] = []
    for number in rng.permutation(len(lines)).tolist():
        place, key = quarter(lines[number]), lines[number].text[:2]
        if place != IGNORE and len(out) < PLACED:
            wording = PLACE_QUESTIONS[int(rng.integers(len(PLACE_QUESTIONS)))]
            out.append(Question(wording.format(key), PLACES[place], "where", "place", number))
    return out
