"""Pages of key-value lines: plain, cluttered, and mixed with a photo panel.

G: patches per side; S: picture side in pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from tokensieve.data.synth.canvas import Canvas, Rgb, Tag
from tokensieve.data.synth.glyphs import CHARSET, faces, glyph
from tokensieve.data.synth.lines import (
    Busy,
    Line,
    draw_line,
    ink_colour,
    place_lines,
    place_questions,
    quarter,
    text_question,
)
from tokensieve.data.synth.objects import coarse_questions, label_objects
from tokensieve.data.synth.paper import blank_paper, pattern, photo, scan, smooth_noise
from tokensieve.data.synth.picture import GRID, PATCH, SIZE, Picture, Question
from tokensieve.data.synth.scenes import panel

WORD_CHARS = CHARSET[:62]
# Patches under text, least and most: where text fills more than a budget allows, every selection
# fails alike.
TEXT_PATCHES = (20, 60)


def plain(rng: Generator, unseen: bool, max_lines: int) -> Picture:
    """Lines on white, grey or tinted paper; on a third of the pages scanner noise."""
    rgb = blank_paper(rng, tint=0.35)
    busy = np.zeros((GRID, GRID), dtype=bool)
    text = int(rng.integers(*TEXT_PATCHES))
    lines = place_lines(rng, busy, min(20, max_lines), unseen, rgb, text)
    return finish(rng, Canvas(rgb), lines, "plain", unseen, scanned=0.33)


def cluttered(rng: Generator, unseen: bool, max_lines: int) -> Picture:
    """Lines among boxes, rules, textures, photo-like panels and words that nobody asks for."""
    rgb = blank_paper(rng, tint=0.7)
    if rng.random() < 0.6:
        tone = rng.uniform(0.3, 1, 3).astype(np.float32) * rng.uniform(3, 11)
        rgb -= np.clip(pattern(rng, (SIZE, SIZE)), -1, 1)[..., None] * tone
    shade_zones(rng, rgb)
    busy = np.zeros((GRID, GRID), dtype=bool)
    put_photos(rng, rgb, busy, int(rng.integers(2, 5)))
    text = int(rng.integers(*TEXT_PATCHES))
    lines = place_lines(rng, busy, min(13, max_lines), unseen, rgb, text)
    put_photos(rng, rgb, busy, int(rng.integers(4, 16)), largest=60)
    draw_rules(rng, rgb, lines)
    canvas = Canvas(rgb)
    for _ in range(int(rng.integers(0, 9))):
        put_word(rng, canvas, busy, unseen)
    return finish(rng, canvas, lines, "cluttered", unseen, scanned=0.35)


def mixed(rng: Generator, unseen: bool, max_lines: int) -> Picture:
    """Lines beside one photo panel; questions about both."""
    rgb = blank_paper(rng, tint=0.4)
    if rng.random() < 0.3:
        rgb -= (pattern(rng, (SIZE, SIZE)) * rng.uniform(2, 9))[..., None]
    busy = np.zeros((GRID, GRID), dtype=bool)
    height, width = (int(v) for v in rng.integers(6 * PATCH, 9 * PATCH + 1, 2))
    top, left = int(rng.integers(0, SIZE - height + 1)), int(rng.integers(0, SIZE - width + 1))
    image, things, masks, ground = panel(rng, (height, width))
    rgb[top : top + height, left : left + width] = image
    mark(busy, top, left, height, width)
    count = int(rng.integers(min(4, max_lines), min(12, max_lines) + 1))
    lines = place_lines(rng, busy, count, unseen, rgb)
    asked = coarse_questions(rng, things, ground, "panel")
    page = finish(rng, Canvas(rgb), lines, "mixed", unseen, scanned=0.15, asked=asked)
    label_objects(page.labels, things, masks, ground, top, left)
    return page


def finish(
    rng: Generator,
    canvas: Canvas,
    lines: list[Line],
    kind: str,
    unseen: bool,
    scanned: float,
    asked: list[Question] | None = None,
) -> Picture:
    """Set the lines, label, add scanner noise with probability `scanned`, ask questions."""
    for number, line in enumerate(lines):
        draw_line(canvas, line, number)
    labels, text, values = canvas.label(len(lines))
    for line in lines:
        top, left, bottom, right = line.box
        labels.place[top:bottom, left:right] = quarter(line)
    if rng.random() < scanned:
        canvas.rgb = scan(rng, canvas.rgb, 0.8)
    questions = [text_question(rng, line, number) for number, line in enumerate(lines)]
    questions += [*place_questions(rng, lines), *(asked or [])]
    return Picture(canvas.image(), kind, tuple(questions), labels, text, values, unseen)


def mark(busy: Busy, top: int, left: int, height: int, width: int) -> None:
    """Mark the patches touched by a pixel rectangle as busy."""
    rows = np.s_[top // PATCH : -(-(top + height) // PATCH)]
    busy[rows, left // PATCH : -(-(left + width) // PATCH)] = True


def shade_zones(rng: Generator, rgb: Rgb) -> None:
    """Lay up to four rectangles of light texture, tint or dark ground; text may cross them."""
    for _ in range(int(rng.integers(0, 5))):
        height, width = (int(v) for v in rng.integers(24, 110, 2))
        top, left = int(rng.integers(0, SIZE - height)), int(rng.integers(0, SIZE - width))
        area = rgb[top : top + height, left : left + width]
        what = rng.random()
        if what < 0.2:  # a dark block aligned to the grid: light text on it
            top, left = top // PATCH * PATCH, left // PATCH * PATCH
            dark = rgb[top : top + height // 12 * 12, left : left + width // 12 * 12]
            dark[:] = rng.uniform(10, 85, 3)
            dark += (smooth_noise(rng, 8, dark.shape[:2]) * 4)[..., None]
        elif what < 0.5:
            area -= rng.uniform(0, 45, 3).astype(np.float32)
        else:
            area -= pattern(rng, (height, width))[..., None] * rng.uniform(2, 13)


def put_photos(rng: Generator, rgb: Rgb, busy: Busy, count: int, largest: int = 90) -> None:
    """Up to `count` meaningless photo panels on free patches (in place)."""
    for _ in range(count):
        height, width = (int(v) for v in rng.integers(20, largest, 2))
        top, left = int(rng.integers(0, SIZE - height)), int(rng.integers(0, SIZE - width))
        rows = np.s_[top // PATCH : -(-(top + height) // PATCH)]
        if busy[rows, left // PATCH : -(-(left + width) // PATCH)].any():
            continue
        rgb[top : top + height, left : left + width] = photo(rng, (height, width))
        mark(busy, top, left, height, width)


def draw_rules(rng: Generator, rgb: Rgb, lines: list[Line]) -> None:
    """Frames round some lines and rules across the page (in place), before the text is set.

    Rules and large frames stop short of the lines: struck-out digits cannot be read.
    """
    before, keep = rgb.copy(), np.zeros((SIZE, SIZE), dtype=bool)
    for line in lines:
        top, left, bottom, right = (v * PATCH for v in line.box)
        keep[max(0, top - 4) : bottom + 4, max(0, left - 4) : right + 4] = True
    for _ in range(int(rng.integers(1, 6))):
        at, begin = int(rng.integers(0, SIZE)), int(rng.integers(0, SIZE // 2))
        end, tone = begin + int(rng.integers(30, SIZE)), rng.uniform(60, 190)
        if rng.random() < 0.6:
            rgb[at, begin:end] = tone
        else:
            rgb[begin:end, at] = tone
    if rng.random() < 0.6:
        corner = [int(v) for v in (*rng.integers(2, 90, 2), *rng.integers(100, 190, 2))]
        frame(rng, rgb, *corner)
    rgb[keep] = before[keep]
    for line in lines:
        if rng.random() < 0.2:
            top, left, bottom, right = (v * PATCH for v in line.box)
            grow = int(rng.integers(3, 6))
            frame(rng, rgb, top - grow, left - grow, bottom + grow, right + grow)


def frame(rng: Generator, rgb: Rgb, top: int, left: int, bottom: int, right: int) -> None:
    """A rectangle's outline, one or two pixels thick, clipped to the picture."""
    top, left = max(0, top), max(0, left)
    bottom, right = min(SIZE - 1, bottom), min(SIZE - 1, right)
    thick, tone = int(rng.integers(1, 3)), rng.uniform(0, 140, 3)
    rgb[top : top + thick, left:right] = tone
    rgb[bottom : bottom + thick, left:right] = tone
    rgb[top:bottom, left : left + thick] = tone
    rgb[top:bottom, right : right + thick] = tone


def put_word(rng: Generator, canvas: Canvas, busy: Busy, unseen: bool) -> None:
    """A word of 3 to 9 characters with natural spacing on free patches, marked busy."""
    face, cap = int(rng.choice(faces(unseen))), int(rng.integers(6, 11))
    length = int(rng.integers(3, 10))
    word = "".join(WORD_CHARS[int(i)] for i in rng.integers(0, len(WORD_CHARS), length))
    shapes = [glyph(face, char, cap) for char in word]
    row = int(rng.integers(0, GRID))
    x = float(rng.integers(0, SIZE - 40))
    end = int(x + sum(shape.advance for shape in shapes)) + 1
    area = np.s_[row : row + 1, int(x) // PATCH : -(-end // PATCH)]
    if busy[area].any():
        return
    busy[area] = True
    below = canvas.rgb[row * PATCH : (row + 1) * PATCH, int(x) : end].mean((0, 1))
    ink = ink_colour(rng, (float(below[0]), float(below[1]), float(below[2])))
    baseline = row * PATCH + 6 + (cap + 1) // 2 + int(rng.integers(-2, 3))
    for char, shape in zip(word, shapes, strict=True):
        canvas.put(shape, round(x) + shape.left, baseline, ink, Tag(char))
        x += shape.advance
