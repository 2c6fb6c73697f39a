"""Objects on a coloured background, and the coarse questions about them.

S: side of the area in pixels (a scene or a panel); masks are float32 (H, W) in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tokensieve.data.synth.canvas import Rgb
from tokensieve.data.synth.paper import pattern, smooth_noise
from tokensieve.data.synth.picture import (
    COLOURS,
    GRID,
    PATCH,
    PLACES,
    SHAPES,
    SIZE,
    Labels,
    Question,
)

Coverage = NDArray[np.float32]
RGB_OF = {
    "red": (205, 38, 40),
    "orange": (240, 138, 28),
    "yellow": (240, 222, 60),
    "green": (46, 150, 62),
    "blue": (42, 84, 205),
    "purple": (132, 58, 165),
    "black": (28, 28, 32),
    "white": (238, 238, 235),
}


@dataclass(frozen=True)
class Thing:
    """An object: `shape` and `colour` as class numbers, centre (`x`, `y`) and `radius` in
    pixels of its area, `place` as a class number (255 where the area is a panel)."""

    shape: int
    colour: int
    x: float
    y: float
    radius: float
    place: int


def tone(rng: Generator, colour: int) -> NDArray[np.float32]:
    """A shade of the named colour, (3,)."""
    jitter = rng.uniform(-14, 14, 3)
    return (np.array(RGB_OF[COLOURS[colour]]) + jitter).astype(np.float32)


def shape_mask(rng: Generator, thing: Thing, y: Coverage, x: Coverage) -> Coverage:
    """Coverage of `thing` at offsets `y`, `x` from its centre, one pixel of soft edge,
    slightly turned; all (H, W)."""
    turn = float(rng.uniform(-0.2, 0.2))
    u = x * np.cos(turn) + y * np.sin(turn)
    v = y * np.cos(turn) - x * np.sin(turn)
    radius = np.hypot(u, v)
    name = SHAPES[thing.shape]
    if name == "circle":
        inside = thing.radius - radius
    elif name == "square":
        inside = 0.85 * thing.radius - np.maximum(abs(u), abs(v))
    elif name == "triangle":
        inside = np.minimum(0.62 * thing.radius - v, (v + thing.radius) * 0.5 - 0.9 * abs(u))
    elif name == "cross":
        arm = np.minimum(abs(u), abs(v))
        inside = np.minimum(0.34 * thing.radius - arm, thing.radius - np.maximum(abs(u), abs(v)))
    else:
        inside = 0.26 * thing.radius - abs(radius - 0.76 * thing.radius)
    mask: Coverage = np.clip(inside + 0.5, 0, 1).astype(np.float32)
    return mask


def background(rng: Generator, colour: int, size: tuple[int, int]) -> Rgb:
    """A lit, grainy, sometimes textured surface of the named colour, (H, W, 3)."""
    shade = 1 + smooth_noise(rng, 3, size) * rng.uniform(0.01, 0.07)
    ramp = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    shade = shade + ramp * rng.uniform(-0.12, 0.12)
    if rng.random() < 0.5:
        shade = shade + pattern(rng, size) * rng.uniform(0.02, 0.11)
    rgb: Rgb = tone(rng, colour) * shade[..., None]
    grain = smooth_noise(rng, 24, size) * rng.uniform(0, 9)
    grain += rng.standard_normal(size, dtype=np.float32) * rng.uniform(1, 9)
    rgb += grain[..., None]
    return rgb


def paint(rng: Generator, rgb: Rgb, thing: Thing) -> Coverage:
    """Draw `thing` on `rgb` (H, W, 3) in place, with shading; return its coverage (H, W)."""
    height, width = rgb.shape[:2]
    reach = thing.radius * 1.25 + 2
    top, left = max(0, int(thing.y - reach)), max(0, int(thing.x - reach))
    area = np.s_[top : min(height, int(thing.y + reach)), left : min(width, int(thing.x + reach))]
    rows, cols = np.mgrid[area]
    y = (rows - np.float32(thing.y)).astype(np.float32)
    x = (cols - np.float32(thing.x)).astype(np.float32)
    mask = shape_mask(rng, thing, y, x)
    slope = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) / thing.radius
    light = 1 + 0.12 * slope
    surface = tone(rng, thing.colour) * light[..., None]
    surface += rng.standard_normal(mask.shape, dtype=np.float32)[..., None] * rng.uniform(0, 7)
    rgb[area] += (surface - rgb[area]) * mask[..., None]
    whole = np.zeros((height, width), dtype=np.float32)
    whole[area] = mask
    return whole


def label_objects(
    labels: Labels, things: list[Thing], masks: list[Coverage], ground: int, top: int, left: int
) -> None:
    """Write colour, shape, ordinal and place of objects and the background's colour.

    `masks` cover an area whose corner is at pixel (`top`, `left`); only patches that lie
    wholly in the area (bar two pixels) are labelled. Changes `labels` in place.
    """
    by_place = sorted(things, key=lambda thing: (thing.place, thing.x))
    height, width = masks[0].shape
    inside = np.zeros((SIZE, SIZE), dtype=np.float32)
    inside[top : top + height, left : left + width] = 1
    free = patch_mean(inside) > 0.8
    for thing, mask in zip(things, masks, strict=True):
        full = np.zeros_like(inside)
        full[top : top + height, left : left + width] = mask
        share = patch_mean(full)
        hit = share > 0.3
        labels.colour[hit] = thing.colour
        labels.shape[hit] = thing.shape
        labels.ordinal[hit] = by_place.index(thing)
        labels.place[hit] = thing.place
        free &= share < 0.08
    labels.background[free] = ground


def patch_mean(field: Coverage) -> NDArray[np.float32]:
    """Mean of a (S, S) field over each patch, (G, G)."""
    out: NDArray[np.float32] = field.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
    return out


def pick(rng: Generator, *wordings: str) -> str:
    """One of the wordings."""
    return wordings[int(rng.integers(len(wordings)))]


def coarse_questions(
    rng: Generator, things: list[Thing], ground: int, about: str
) -> list[Question]:
    """Background, colour, shape, count and (in scenes) where, in several wordings."""
    asked = pick(rng, "What is the background colour?", "Which colour is the background?")
    out = [Question(asked, COLOURS[ground], "background", about)]
    asked = pick(rng, "How many objects are there?", "Count the objects.", "How many objects?")
    out.append(Question(asked, str(len(things)), "count", about))
    for thing in things:
        shape, colour = SHAPES[thing.shape], COLOURS[thing.colour]
        asked = pick(rng, "What colour is the {}?", "Which colour is the {}?", "Colour of the {}?")
        out.append(Question(asked.format(shape), colour, "colour", about))
        asked = pick(rng, "What shape is {}?", "What shape is the {} object?", "Which shape is {}?")
        out.append(Question(asked.format(colour), shape, "shape", about))
        if thing.place < len(PLACES):
            asked = pick(rng, "Where is the {}?", "Where is the {} located?")
            out.append(Question(asked.format(shape), PLACES[thing.place], "where", about))
    return out
