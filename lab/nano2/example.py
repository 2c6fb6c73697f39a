"""The shipped typeset page, `example:typeset`: `python -m lab.nano2.example`.

A receipt of the test split, in fonts that no page of train has, chosen because nano 2 reads all of
it: for trying things, not for telling how well it reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lab import command
from lab.nano2.pages import HARDEST, page
from tokensieve.assets import asset_path
from tokensieve.data.synth.shipped import QUESTIONS
from tokensieve.files import write_text, written_whole

NUMBER = 60_022


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write picture and questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=asset_path("pictures"), help="a folder")
    given = command.parse(parser, arguments)
    drawn = page(0, "test", NUMBER, HARDEST, False, "receipt", False)
    asked = [{"question": f"{one.question}?", "answer": one.answer} for one in drawn.asked]
    with written_whole(given.out / "typeset.png") as part:
        Image.fromarray(drawn.image).save(part, format="png")
    told = {"kind": "typeset", "questions": asked[:QUESTIONS]}
    write_text(given.out / "typeset.json", json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    command.run(main, "file")
