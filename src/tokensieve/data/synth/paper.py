"""Paper, textures and the noise of scanners: everything that is neither text nor object.

S: picture side in pixels. Pictures are float32 (S, S, 3) in 0..255.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tokensieve.data.pictures.decode import decode_picture
from tokensieve.data.synth.canvas import Rgb
from tokensieve.data.synth.picture import SIZE

Field = NDArray[np.float32]


def smooth_noise(rng: Generator, cells: int, size: tuple[int, int] = (SIZE, SIZE)) -> Field:
    """Smooth noise of about unit deviation, (H, W): `cells` random values a side, enlarged."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    image = Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32).copy()


def pattern(rng: Generator, size: tuple[int, int]) -> Field:
    """One of six regular or irregular textures in -1..1, (H, W)."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    period = float(rng.uniform(3, 14))
    angle = float(rng.uniform(0, np.pi))
    along = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    across = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    which = int(rng.integers(6))
    wave: Field
    if which == 0:
        wave = np.sign(np.sin(along))
    elif which == 1:
        wave = np.sin(along) * np.sin(across)
    elif which == 2:
        wave = np.where(np.sin(along) * np.sin(across) > 0.5, 1, -0.3)
    elif which == 3:
        wave = np.clip(rng.standard_normal(size, dtype=np.float32), -1, 1)
    elif which == 4:
        wave = np.clip(smooth_noise(rng, int(rng.integers(8, 40)), size), -1, 1)
    else:
        wave = np.sign(np.sin(along) * np.sin(across))
    return wave.astype(np.float32, copy=False)


def blank_paper(rng: Generator, tint: float) -> Rgb:
    """White, grey or (with probability `tint`) tinted paper, (S, S, 3)."""
    base = np.full(3, rng.uniform(225, 255), dtype=np.float32)
    if rng.random() < tint:
        base += rng.uniform(-38, 6, 3).astype(np.float32)
    rgb = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    rgb[:] = base
    if rng.random() < 0.3:
        rgb += (smooth_noise(rng, 4) * rng.uniform(2, 7))[..., None]
    return rgb


def photo(rng: Generator, size: tuple[int, int]) -> Rgb:
    """A photo-like patchwork without meaning: blobs, gradients and textures, (H, W, 3)."""
    rgb = np.empty((*size, 3), dtype=np.float32)
    rgb[:] = rng.uniform(40, 215, 3)
    for cells in (3, 6, 14):
        tone = rng.uniform(-45, 45, 3).astype(np.float32)
        rgb += smooth_noise(rng, cells, size)[..., None] * tone
    for _ in range(int(rng.integers(1, 4))):
        where = smooth_noise(rng, int(rng.integers(2, 6)), size) > 0.4
        tone = rng.uniform(-110, 110, 3).astype(np.float32)
        rgb += np.where(where, pattern(rng, size), 0)[..., None] * tone
    rgb += rng.standard_normal(size, dtype=np.float32)[..., None] * rng.uniform(2, 14)
    return rgb


def scan(rng: Generator, rgb: Rgb, strength: float) -> Rgb:
    """Scanner and copier noise: shadow, fading, speckle, blur, grain, JPEG. New array."""
    out = rgb.copy()
    if rng.random() < 0.5:
        ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
        shade = ramp[None, :] * rng.uniform(-1, 1) + ramp[:, None] * rng.uniform(-1, 1)
        out += (shade * rng.uniform(4, 22) * strength)[..., None]
    if rng.random() < 0.4:
        mean = out.mean((0, 1))
        fade = 1 - strength * rng.uniform(0, 0.35) * np.clip(smooth_noise(rng, 5) + 0.5, 0, 1)
        out = mean + (out - mean) * fade[..., None].astype(np.float32)
    if rng.random() < 0.5:
        spots = rng.random((SIZE, SIZE), dtype=np.float32) < rng.uniform(0.0005, 0.006) * strength
        out[spots] = rng.uniform(20, 160)
    if rng.random() < 0.5:
        grain = rng.standard_normal((SIZE, SIZE), np.float32) * rng.uniform(1, 9) * strength
        out += grain[..., None]
    image = Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.75) * strength))
    if rng.random() < 0.5:
        image = through_jpeg(image, int(rng.integers(35, 85)))
    return np.asarray(image, dtype=np.float32).copy()


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """`image` after one JPEG round trip at `quality`."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode_picture(buffer.getvalue(), "a generated page")
