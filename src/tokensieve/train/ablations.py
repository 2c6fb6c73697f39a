"""Train every variant of an ablation: `python -m tokensieve.train.ablations SPEC --features STORE`.

A spec names groups of variants, each a few settings on top of the common ones. Two variants of
equal settings are one training; what was cut off goes on. `tokensieve.eval.ablations` measures.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from tokensieve.data.ablations import trainings
from tokensieve.data.features import FeatureStore
from tokensieve.nn.pretrained import read_json
from tokensieve.train.console import log_to_terminal
from tokensieve.train.recipe import make_recipe
from tokensieve.train.selector import train_selector

logger = logging.getLogger("tokensieve.train")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path, help="experiments/ablations.json")
    parser.add_argument("--features", type=Path, nargs="+", required=True, help="feature stores")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--shard", default="0/1", help="this process's part, as i/n")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # two shards on two cores beat one shard on both
    log_to_terminal()
    logger.setLevel(logging.WARNING)
    store = FeatureStore(options.features)
    part, parts = (int(text) for text in options.shard.split("/"))
    for number, one in enumerate(trainings(read_json(options.spec))):
        out = options.out / one.folder
        if number % parts != part or (out / "selector" / "config.json").exists():
            continue
        recipe = make_recipe(store.encoder, "default", one.texts)
        logger.warning("%s %s seed %d", one.folder, dict(one.settings), one.seed)
        train_selector(store, recipe, out, one.seed)


if __name__ == "__main__":
    main()
