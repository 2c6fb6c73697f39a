"""Run a suite into records, with its ceilings: `python -m lab.run lab/studies/nano/suite.json`.

As `tokensieve.evaluate.run`, whose options it takes; `oracle-text` is known besides, and the world
of nano 2's pages.
"""

from __future__ import annotations

import torch

from lab import command
from lab.oracle import TextOracle
from lab.world import NANO2
from tokensieve.evaluate import run
from tokensieve.evaluate.subject import Told
from tokensieve.evaluate.tasks import World

CEILINGS: dict[str, Told] = {
    "oracle-text": lambda items, seed: TextOracle(
        text=torch.stack([item.text_mask for item in items]), seed=seed
    )
}
WORLDS: dict[str, World] = {"nano2": NANO2}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run this shard's jobs."""
    run.main(arguments, CEILINGS, WORLDS)


if __name__ == "__main__":
    command.run(main)
