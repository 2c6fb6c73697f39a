"""Pictures side by side, each with a caption, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tokensieve.errors import ConfigError
from tokensieve.files import check_writable

PAPER, INK, FAINT = "white", (24, 26, 34), (110, 114, 128)
_MARGIN, _SIZE = 14, 15


@dataclass(frozen=True)
class Panel:
    """One picture and what stands below it: a title and a few smaller lines."""

    picture: Image.Image
    title: str
    lines: tuple[str, ...] = ()


def sheet(rows: Sequence[Sequence[Panel]], *, heading: str = "", width: int = 384) -> Image.Image:
    """Panels in `rows`, every picture fitted into `width` pixels square, text wrapped below it."""
    drawn = []
    for row in rows:
        sizes = [_fitted(panel.picture.size, width) for panel in row]
        tallest = max(size[1] for size in sizes)
        drawn.append([_drawn(p, s, (width, tallest)) for p, s in zip(row, sizes, strict=True)])
    columns = max(len(row) for row in drawn)
    heights = [max(picture.height for picture in row) for row in drawn]
    total = _MARGIN + columns * (width + _MARGIN)
    head = _wrapped(heading, total - 2 * _MARGIN, _SIZE + 2) if heading else []
    top = _MARGIN + len(head) * (_SIZE + 8)
    page = Image.new("RGB", (total, top + sum(h + _MARGIN for h in heights)), PAPER)
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(head):
        draw.text((_MARGIN, _MARGIN + i * (_SIZE + 8)), line, INK, font=_font(_SIZE + 2))
    for pictures, height in zip(drawn, heights, strict=True):
        for column, picture in enumerate(pictures):
            page.paste(picture, (_MARGIN + column * (width + _MARGIN), top))
        top += height + _MARGIN
    return page


def _fitted(size: tuple[int, int], width: int) -> tuple[int, int]:
    scale = width / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _drawn(panel: Panel, size: tuple[int, int], room: tuple[int, int]) -> Image.Image:
    """The panel's picture at `size` in the middle of `room` pixels, its text below."""
    width, tall = room
    picture = panel.picture
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    text = [(line, _SIZE + 1, INK) for line in _wrapped(panel.title, width, _SIZE + 1)]
    for line in panel.lines:
        text += [(part, _SIZE - 1, FAINT) for part in _wrapped(line, width, _SIZE - 1)]
    block = Image.new("RGB", (width, tall + 8 + len(text) * (_SIZE + 6)), PAPER)
    block.paste(picture, ((width - size[0]) // 2, (tall - size[1]) // 2))
    draw = ImageDraw.Draw(block)
    for i, (line, height, colour) in enumerate(text):
        draw.text((0, tall + 6 + i * (_SIZE + 6)), line, colour, font=_font(height))
    return block


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """`text` in lines of at most `width` pixels, words too long for a line cut short."""
    font, lines = _font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def pages_alike(pages: Sequence[Image.Image]) -> list[Image.Image]:
    """Sheets on paper of one size, as the frames of an animation need it."""
    size = (max(page.width for page in pages), max(page.height for page in pages))
    alike = [Image.new("RGB", size, PAPER) for _ in pages]
    for paper, page in zip(alike, pages, strict=True):
        paper.paste(page, (0, 0))
    return alike


def check_picture_path(
    path: str | Path, source: Path | None = None, *, moving: bool = False
) -> Path:
    """`path`, if a picture may be written there and it is not the `source` itself.

    moving: an animation is to be had too. Raises `ConfigError` if not; creates nothing.
    """
    path = check_writable(path)
    if source is not None and path.resolve() == source.resolve():
        raise ConfigError(
            f"Expected another file than the picture itself. Got {path}. Name a new file."
        )
    known = [".png", ".jpg", ".jpeg", ".webp", *([".gif"] if moving else [])]
    if path.suffix.lower() not in known:
        raise ConfigError(
            f"Expected a picture format to write. Got '{path.name}'. Name it .png, .jpg"
            f"{', .gif' if moving else ''} or .webp."
        )
    return path
