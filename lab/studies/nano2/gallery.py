"""What methods keep for nano 2, to look at: `python -m lab.studies.nano2.gallery`.

Writes docs/results/nano2-gallery.md with pictures of generated pages, a receipt and scenes. With
--pictures it looks at pictures of others (receipts, photos) instead and writes sheets into --out:
keep those out of the repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lab import command
from lab.report.gallery import Piece, panels, save
from lab.report.page import document, words
from lab.world import draw
from tokensieve.data.pictures.decode import open_picture
from tokensieve.evaluate.ask import Settings
from tokensieve.files import write_text
from tokensieve.folders import Kind, claimed
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.viz.sheet import Panel

KINDS = ("lines", "receipt", "prose", "scene", "mixed")
NUMBER = 900_000  # of a picture: beyond those that suites ask about
METHODS = ("selector", "divprune", "pixel-variance", "random")
KEEP = 0.2
SHEETS = Kind("sheets of what is kept")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the page, or the sheets of other pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano2", help="a model of nano 2")
    parser.add_argument("--weights", default="runs/nano2/selector/seed0/selector")
    parser.add_argument("--pictures", nargs="*", type=Path, default=[], help="files of others")
    parser.add_argument("--out", type=Path, help="folder for sheets of --pictures")
    parser.add_argument("--root", default=".", type=Path, help="where docs/ lies")
    options = command.parse(parser, arguments)
    settings = Settings(
        keep=KEEP, max_new_tokens=24, by_method={"selector": {"weights": options.weights}}
    )
    loaded = load_model(options.model)
    if options.pictures:
        out = options.out or Path("runs/nano2/sheets")
        with claimed(out, SHEETS) as folder:
            for path in options.pictures:
                piece = Piece(path.stem, open_picture(path))
                save(folder / f"{path.stem}.png", [row_of(loaded, piece, settings)], 300)
        return
    parts = []
    for kind in KINDS:
        picture = draw(kind, NUMBER, "test")
        asked = picture.questions[0]
        piece = Piece(kind, picture.image, asked.text, asked.answer)
        name = f"nano2-kept-{kind}.png"
        save(options.root / "docs/figures" / name, [row_of(loaded, piece, settings)], 300)
        parts += [f"## {kind.capitalize()}", f"![{kind}, and what is kept](../figures/{name})"]
    text = document(
        "What is kept of typeset pages",
        f"{words(METHODS)} at {KEEP:.0%} of the tokens, to look at.",
        parts,
        "`make nano2-gallery`",
        on="nano 2 (336 pixels, 576 tokens, typeset pages)",
    )
    write_text(options.root / "docs/results/nano2-gallery.md", text)


def row_of(loaded: Loaded, piece: Piece, settings: Settings) -> list[Panel]:
    """The picture, all its tokens' answer, and every method's."""
    methods = [("full", 1.0), *[(method, KEEP) for method in METHODS]]
    return panels(loaded, piece, methods, settings)


if __name__ == "__main__":
    command.run(main, "picture")
