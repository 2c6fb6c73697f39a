"""`python -m tokensieve.data.llava --out DIR --pictures N`: a small set in LLaVA's layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokensieve.data.llava.write import IMAGES, write_llava
from tokensieve.errors import TokensieveError


def main(arguments: list[str] | None = None) -> int:
    """Write the set and say where it is; 2 where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m tokensieve.data.llava", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--pictures", type=int, default=256, help="generated pictures")
    parser.add_argument("--split", default="train", help="train, val or test")
    chosen = parser.parse_args(arguments)
    try:
        captions, instruct = write_llava(chosen.out, chosen.pictures, chosen.split)
    except TokensieveError as error:
        sys.stderr.write(f"tokensieve: {error}\n")
        return 2
    sys.stdout.write(f"{captions}\n{instruct}\n{chosen.out / IMAGES}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
