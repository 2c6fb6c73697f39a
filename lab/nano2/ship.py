"""Write an encoder's averaged weights in fp16 with a record of how it was made and what it reads.

`python -m lab.nano2.ship --encoder CHECKPOINT --out lab/nano2/weights/encoder.safetensors`. Moments
stay behind: `train_encoder --begin FILE` goes on from such weights with fresh ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from lab import command
from lab.nano2.encoder import DenseEncoder, accuracy
from lab.nano2.features import trained
from lab.nano2.pages import LEVELS, page
from tokensieve.files import make_folder, write_text
from tokensieve.nn.pretrained import write_weights


def judged(model: DenseEncoder, seed: int, pages: int) -> dict[str, dict[str, float]]:
    """Accuracy on val pages of every level in known fonts, and of the hardest in unknown fonts and
    layouts, light and dark."""
    hardest = len(LEVELS) - 1
    sets: dict[str, tuple[int, bool, bool | None]] = {
        **{f"level {k}": (k, True, None) for k in range(len(LEVELS))},
        "unseen fonts and layouts": (hardest, False, None),
        "unseen, light": (hardest, False, False),
        "unseen, dark": (hardest, False, True),
    }
    found = {}
    for name, (level, seen, dark) in sets.items():
        drawn = [page(seed, "val", 10_000 + k, level, seen, dark=dark) for k in range(pages)]
        found[name] = {key: round(value, 4) for key, value in accuracy(model, drawn).items()}
    return found


def ship(encoder: Path, out: Path, pages: int) -> None:
    """Write `out` and beside it `out` with the ending .json."""
    model, state = trained(encoder)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    record = {
        "state": state,
        "val": judged(model, state["recipe"]["seed"], pages),
        "pages": pages,
        "bytes": sum(value.nbytes for value in weights.values()),
        "commit": commit,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "moments": "not here: go on with train_encoder --begin",
    }
    make_folder(out.parent)
    write_weights(out, weights)
    write_text(out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=100, help="a set")
    given = command.parse(parser, arguments)
    ship(given.encoder, given.out, given.pages)


if __name__ == "__main__":
    command.run(main, "file")
