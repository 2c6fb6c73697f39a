"""Pages for a selector of nano 2 to learn from: `python -m lab.studies.nano2.pictures --out DIR`.

PNG files of the split `train`, for `tokensieve extract --images DIR`; a seed of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lab import command
from lab.nano2.pages import HARDEST, page
from tokensieve.files import written_whole
from tokensieve.folders import Kind, claimed

SEED = 3  # no page that the model learned from, nor one that a suite asks about
PAGES = Kind("pages of nano 2")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the pages that are not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=4000)
    options = command.parse(parser, arguments)
    with claimed(options.out, PAGES) as folder:
        for number in range(options.number):
            path = folder / f"{number:06d}.png"
            if not path.exists():
                drawn = page(SEED, "train", number, HARDEST)
                with written_whole(path) as part:
                    Image.fromarray(drawn.image).save(part, format="PNG")


if __name__ == "__main__":
    command.run(main, "page")
