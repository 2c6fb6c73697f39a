"""What methods keep, to look at: `python -m lab.report.gallery`, or `make gallery`.

Writes docs/results/gallery.md with its pictures, and docs/figures/kept.png for the README's top.
Every picture is generated, of seeds that no evaluation reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lab.report.page import NANO, document, words
from tokensieve.data.synth import generate
from tokensieve.data.synth.shipped import shipped_pictures
from tokensieve.evaluate.answer import Answer
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.demo import is_right
from tokensieve.files import make_folder, write_text, written_whole
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded, hush
from tokensieve.viz.compare import Shown, overlay_rows
from tokensieve.viz.sheet import Panel, sheet

METHODS = ("selector", "divprune", "todre", "pixel-variance", "fastervlm", "random")
KEEP, SEED, COLOURS = 0.2, 900_000, 160
SETTINGS = Settings(keep=KEEP, max_new_tokens=8)
SHIFT, FRAMES = 24, 3  # pixels that a frame of the video is further, and how many there are
TITLES = {
    "page": "A page", "cluttered": "A cluttered page", "scene": "A scene",
    "mixed": "A page with a photo panel", "receipt": "A receipt, small print", "video": "A video",
}  # fmt: skip
NOTES = {
    "receipt": "Print as small as on real receipts. The embedded model was not taught to read it, "
    "so nothing is asked.",
    "video": "The frames of a camera moved to the side, each given as a picture: a prompt with a "
    "video is refused so far.",
}


@dataclass(frozen=True)
class Piece:
    """A picture of the gallery, and what is asked of it; without a question it is only shown."""

    name: str
    image: Image.Image
    question: str = ""
    right: str = ""


def pieces() -> list[Piece]:
    """The shipped pictures, a receipt, and the frames of a video."""
    found = [Piece(one.name, one.image, *one.questions[0]) for one in shipped_pictures()]
    found.append(Piece("receipt", generate("dense", SEED, "test").image))
    seen = generate("scene", SEED + 1, "test")
    width, height = seen.image.size
    near = seen.image.resize((width + SHIFT * (FRAMES - 1), height + SHIFT * (FRAMES - 1)))
    for number in range(FRAMES):
        left = number * SHIFT
        found.append(Piece("video", near.crop((left, SHIFT, left + width, SHIFT + height))))
    return found


def panels(
    loaded: Loaded,
    piece: Piece,
    methods: Sequence[tuple[str, float]],
    settings: Settings = SETTINGS,
) -> list[Panel]:
    """The picture, and a panel for each method and share of what it keeps and answers."""
    answers = [
        ask(loaded, piece.image, piece.question or "What is it?", method,
            replace(settings, keep=keep))
        for method, keep in methods
    ]  # fmt: skip
    shown = [
        Shown(f"{one.method}, {float(one.keep):.0%}", _lines(one, piece), one.images[0])
        for one in answers
    ]
    (row,) = overlay_rows(loaded.processor, piece.image, shown)
    asked = (piece.question, f"Right answer: {piece.right}") if piece.question else ()
    return [replace(row[0], lines=asked), *row[1:]]


def _lines(answer: Answer, piece: Piece) -> tuple[str, ...]:
    tokens = f"{answer.kept_tokens} of {answer.visual_tokens} tokens"
    if not piece.question:
        return (tokens,)
    verdict = "right" if is_right(answer, piece.right) else "wrong"
    return tokens, f"{answer.answer or '(nothing)'}: {verdict}"


def save(path: Path, rows: Sequence[Sequence[Panel]], width: int) -> None:
    """Write a sheet as a small PNG of few colours, whole or not at all."""
    make_folder(path.parent)
    small = sheet(rows, width=width).quantize(COLOURS, dither=Image.Dither.NONE)
    with written_whole(path) as part:
        small.save(part, format="PNG", optimize=True)


def top(loaded: Loaded) -> list[Panel]:
    """The README's picture: one page, what is kept of it, the answers."""
    found = {piece.name: piece for piece in pieces()}["cluttered"]
    return panels(loaded, found, [("selector", 0.4), ("selector", 0.2), ("random", 0.2)])


def gallery(loaded: Loaded, folder: Path) -> tuple[list[str], dict[str, int], int]:
    """Write every picture into `folder`; the page's parts, right answers by method, questions."""
    by_name: dict[str, list[Piece]] = {}
    for piece in pieces():
        by_name.setdefault(piece.name, []).append(piece)
    parts, right, asked = [], dict.fromkeys(METHODS, 0), 0
    for name, those in by_name.items():
        methods = [(method, KEEP) for method in METHODS]
        if len(those) > 1:  # frames: one row each, fewer methods
            rows = [panels(loaded, piece, [methods[0], methods[1], methods[-1]]) for piece in those]
        else:
            row = panels(loaded, those[0], [("full", 1.0), *methods])
            rows = [row[:4], row[4:]]
            if those[0].question:
                asked += 1
                for method, panel in zip(METHODS, row[2:], strict=True):
                    right[method] += panel.lines[-1].endswith(": right")
        save(folder / f"gallery-{name}.png", rows, 220)
        shown = f"![{TITLES[name]}, and what methods keep](../figures/gallery-{name}.png)"
        parts += [f"## {TITLES[name]}", *([NOTES[name]] if name in NOTES else []), shown]
    return parts, right, asked


def main(root: Path = Path()) -> None:
    """Write the page and every picture."""
    hush()
    loaded, figures = load_model("nano"), root / "docs" / "figures"
    save(figures / "kept.png", [top(loaded)], 220)
    parts, right, asked = gallery(loaded, figures)
    counts = words([f"`{method}` {count}" for method, count in right.items()])
    about = (f"What six methods keep of generated pictures at {KEEP:g} of the visual tokens; what "
             "is dark never reaches the LLM. Pictures to look at, not a measurement: "
             "[comparison.md](comparison.md) has the numbers.")  # fmt: skip
    message = f"Of the {asked} questions asked here, right with {KEEP:.0%} of the tokens: {counts}."
    write_text(root / "docs" / "results" / "gallery.md",
               document("Gallery", message, [about, *parts], "`make gallery`",
                        on=NANO))  # fmt: skip


if __name__ == "__main__":
    main()
