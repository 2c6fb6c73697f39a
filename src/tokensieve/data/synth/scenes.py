"""Photo-like scenes, and photo panels on pages."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from tokensieve.data.synth.canvas import Canvas, Rgb
from tokensieve.data.synth.objects import (
    Coverage,
    Thing,
    background,
    coarse_questions,
    label_objects,
    paint,
)
from tokensieve.data.synth.paper import scan
from tokensieve.data.synth.picture import (
    COLOURS,
    GRID,
    IGNORE,
    MAX_OBJECTS,
    SHAPES,
    SIZE,
    Labels,
    Picture,
)

ANCHORS = ((48, 48), (144, 48), (48, 144), (144, 144), (96, 96))  # (x, y) of PLACES


def draw_identities(rng: Generator, count: int) -> tuple[int, list[int], list[int]]:
    """Background colour, and `count` different colours and shapes."""
    colours = rng.choice(len(COLOURS), size=count + 1, replace=False)
    shapes = rng.choice(len(SHAPES), size=count, replace=False)
    return int(colours[0]), [int(c) for c in colours[1:]], [int(s) for s in shapes]


def scene(rng: Generator) -> Picture:
    """One to four objects on a coloured background, filling the picture."""
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    ground, colours, shapes = draw_identities(rng, count)
    places = [int(p) for p in rng.choice(len(ANCHORS), size=count, replace=False)]
    limit = 27 if 4 in places and count > 1 else 38
    things = []
    for colour, shape, place in zip(colours, shapes, places, strict=True):
        radius = float(rng.uniform(17, limit))
        x, y = (a + float(rng.uniform(-8, 8)) for a in ANCHORS[place])
        things.append(Thing(shape, colour, x, y, radius, place))
    rgb = background(rng, ground, (SIZE, SIZE))
    masks: list[Coverage] = [paint(rng, rgb, thing) for thing in things]
    labels = Labels.empty()
    label_objects(labels, things, masks, ground, 0, 0)
    if rng.random() < 0.2:
        rgb = scan(rng, rgb, 0.6)
    questions = tuple(coarse_questions(rng, things, ground, "scene"))
    text, values = np.zeros((GRID, GRID), dtype=bool), np.zeros((0, GRID, GRID), dtype=bool)
    return Picture(Canvas(rgb).image(), "scene", questions, labels, text, values)


def panel(rng: Generator, size: tuple[int, int]) -> tuple[Rgb, list[Thing], list[Coverage], int]:
    """A photo (H, W, 3) of one or two objects; also the objects, coverages and background."""
    count = int(rng.integers(1, 3))
    ground, colours, shapes = draw_identities(rng, count)
    height, width = size
    half = count > 1
    things = []
    for number, (colour, shape) in enumerate(zip(colours, shapes, strict=True)):
        room = (width / 2 if half else width) / 2
        radius = float(rng.uniform(15, max(15.5, min(room, height / 2, 34) - 4)))
        middle = width * (0.25 + 0.5 * number) if half else width / 2
        x = middle + float(rng.uniform(-1, 1)) * max(0.0, room - radius - 3)
        y = height / 2 + float(rng.uniform(-1, 1)) * max(0.0, height / 2 - radius - 3)
        things.append(Thing(shape, colour, x, y, radius, IGNORE))
    rgb = background(rng, ground, size)
    masks = [paint(rng, rgb, thing) for thing in things]
    return rgb, things, masks, ground
