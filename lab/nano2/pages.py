"""Pages of 336 x 336: one is drawn from (seed, split, index, level) alone.

A level is how hard pages are. `seen=False` takes the split's own fonts and layouts, which no page
of train has. The fonts' files are part of it: another release of a package may draw otherwise.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lab.nano2 import fonts, layouts, words
from lab.nano2.scenes import scene
from lab.nano2.sheet import SIZE, Asked, Colour, Look, Sheet

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Level:
    """Fonts, sizes in pixels, and the shares of pages that are dark, spoilt, turned, textured
    or have boxes and rules under the text; `tint` is how far colours leave grey. `close` is the
    share of close text among the pages an encoder learns from: it has four times the characters
    of the other layouts, and a step costs the same."""

    fonts: tuple[str, ...]
    low: int
    high: int
    dark: float
    spoilt: float
    turned: float
    textured: float
    clutter: float
    tint: int
    close: float


LEVELS = (
    Level(fonts.EASY, 14, 20, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.8),
    Level(fonts.TRAIN, 14, 22, 0.15, 0.2, 0.0, 0.0, 0.2, 10, 0.8),
    Level(fonts.TRAIN, 12, 26, 0.25, 0.4, 0.2, 0.15, 0.3, 20, 0.8),
    Level(fonts.TRAIN, 12, 30, 0.35, 0.6, 0.4, 0.3, 0.4, 35, 0.8),
)
HARDEST = len(LEVELS) - 1


@dataclass(frozen=True)
class Page:
    """`image` (SIZE, SIZE, 3) uint8, `places` (N, 2) and `codes` (N,) of its characters in the
    order written, what may be asked, the layout's name, and whether light text is on dark."""

    image: NDArray[np.uint8]
    places: NDArray[np.float64]
    codes: NDArray[np.int64]
    asked: tuple[Asked, ...]
    kind: str
    dark: bool


def page(
    seed: int,
    split: str,
    index: int,
    level: int,
    seen: bool = True,
    kind: str | None = None,
    dark: bool | None = None,
) -> Page:
    """The page of that number; `kind` (a layout, "scene", "mixed") and `dark` may be forced."""
    r = Random(f"{seed}/{split}/{index}/{level}/{seen}/{kind}/{dark}")
    hard = LEVELS[level]
    dark = r.random() < hard.dark if dark is None else dark
    own = {"train": (), "val": fonts.VAL, "test": fonts.TEST}[split]
    known = hard.fonts if seen or not own else own
    few = tuple(r.choice(known) for _ in range(r.choice((1, 1, 2, 3))))
    look = Look(few, hard.low, hard.high, *colours(r, hard.tint, dark))
    kind = kind or draw_kind(r, split, seen)
    sheet = Sheet(r, look, ground(r, look, hard))
    if kind == "scene":
        scene(sheet, (0, 0, SIZE, SIZE))
    else:
        if r.random() < hard.clutter:
            clutter(sheet)
        LAYOUTS["lines" if kind == "mixed" else kind](sheet, split)
        if kind == "mixed":
            panel(sheet)
    places = np.array(sheet.places, dtype=np.float64).reshape(-1, 2)
    image = sheet.image
    if r.random() < hard.turned:
        image, places = turned(r, image, places, look.ground)
    pixels = spoilt(r, image) if r.random() < hard.spoilt else np.asarray(image)
    codes = np.array(sheet.codes, dtype=np.int64)
    return Page(pixels, places, codes, tuple(sheet.asked), kind, dark)


LAYOUTS = {name: layout for name, (_, layout) in layouts.TRAIN.items()}
for _held in layouts.HELD_OUT.values():
    LAYOUTS.update(_held)


def draw_kind(r: Random, split: str, seen: bool) -> str:
    """A layout of the split, or now and then a scene or a mixed page."""
    t = r.random()
    if t < 0.12:
        return "scene" if t < 0.06 else "mixed"
    if not seen and split in layouts.HELD_OUT:
        return r.choice(sorted(layouts.HELD_OUT[split]))
    shares = [share for share, _ in layouts.TRAIN.values()]
    return r.choices(list(layouts.TRAIN), shares)[0]


def colours(r: Random, tint: int, dark: bool) -> tuple[Colour, Colour]:
    """Ground and ink."""

    def tinted(grey: int) -> Colour:
        a, b, c = (min(255, max(0, grey + r.randint(-tint, tint))) for _ in range(3))
        return a, b, c

    light, deep = r.randint(205, 255), r.randint(0, 85)
    return (tinted(deep // 2), tinted(light)) if dark else (tinted(light), tinted(deep))


def ground(r: Random, look: Look, level: Level) -> Image.Image | None:
    """Paper with a texture: clouds, weave or a slope, faint beside the ink."""
    if r.random() >= level.textured:
        return None
    rng = np.random.default_rng(r.getrandbits(32))
    cells = r.choice((4, 8, 16, 42, 84))
    small = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    coarse = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
    if r.random() < 0.3:
        across = np.arange(SIZE)[None] * r.uniform(-1, 1) + np.arange(SIZE)[:, None] * r.uniform(
            -1, 1
        )
        coarse = (127 + 128 * np.sin(across / r.uniform(1.2, 30))).astype(np.float32)
    towards = np.array(look.ink, dtype=np.float32) - np.array(look.ground, dtype=np.float32)
    depth = coarse[..., None] / 255 * r.uniform(0.05, 0.35)
    return Image.fromarray((np.array(look.ground) + depth * towards).clip(0, 255).astype(np.uint8))


def clutter(s: Sheet) -> None:
    """Boxes and rules that have nothing to do with the text."""
    for _ in range(s.r.randint(1, 4)):
        x, y = s.r.randint(0, SIZE - 40), s.r.randint(0, SIZE - 40)
        box = (x, y, x + s.r.randint(30, 200), y + s.r.randint(20, 160))
        t = s.r.random()
        if t < 0.4:
            s.draw.rectangle(box, outline=s.line_colour(), fill=s.r.choice((None, s.shade())))
        elif t < 0.8:
            s.draw.line((0, y, SIZE, y), fill=s.line_colour(), width=s.r.choice((1, 1, 2)))
        else:
            s.draw.line((x, 0, x, SIZE), fill=s.line_colour())


def panel(s: Sheet) -> None:
    """Lay a scene over a part of the page; lines that it touches are gone."""
    wide, high = s.r.randint(90, 170), s.r.randint(90, 170)
    x, y = s.r.randint(0, SIZE - wide), s.r.randint(0, SIZE - high)
    edge = 8  # a character at most reaches that far beyond its place, near enough

    def hidden(number: int) -> bool:
        a, b = s.places[number]
        return x - edge < a < x + wide + edge and y - 2 * edge < b < y + high + 2 * edge

    s.asked = [
        one for one in s.asked if not any(hidden(k) for part in (one.key, one.value) for k in part)
    ]
    for number in range(len(s.codes)):
        if hidden(number):
            s.codes[number] = words.UNSURE
    scene(s, (x, y, x + wide, y + high))


def turned(
    r: Random, image: Image.Image, places: NDArray[np.float64], fill: Colour
) -> tuple[Image.Image, NDArray[np.float64]]:
    """Image and places turned by up to two degrees about the middle."""
    angle = r.uniform(-2, 2)
    out = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)
    a = np.deg2rad(angle)
    middle = SIZE / 2
    x, y = places[:, 0] - middle, places[:, 1] - middle
    moved = np.stack([x * np.cos(a) + y * np.sin(a), y * np.cos(a) - x * np.sin(a)], axis=1)
    return out, moved + middle


def spoilt(r: Random, image: Image.Image) -> NDArray[np.uint8]:
    """Blurred, compressed, noisy: one of them or several."""
    if r.random() < 0.45:
        image = image.filter(ImageFilter.GaussianBlur(r.uniform(0.2, 0.8)))
    if r.random() < 0.45:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=r.randint(35, 92))
        image = Image.open(file).convert("RGB")
    pixels = np.asarray(image)
    if r.random() < 0.6:
        rng = np.random.default_rng(r.getrandbits(32))
        grain = rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32) * r.uniform(1, 12)
        pixels = (pixels + grain).clip(0, 255).astype(np.uint8)
    return pixels
