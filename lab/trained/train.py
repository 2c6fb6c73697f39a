"""Train every variant: `python -m lab.trained.train SPEC --features STORE`.

A spec names groups of variants, each a few settings on top of the common ones. Two variants of
equal settings are one training; what was cut off goes on. the study measures.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lab import command
from lab.trained.spec import Training, trainings
from tokensieve.data.store.features import FeatureStore
from tokensieve.nn.pretrained import read_json
from tokensieve.train.console import log_to_terminal
from tokensieve.train.selector.recipe import make_recipe
from tokensieve.train.selector.run import train_selector

logger = logging.getLogger("tokensieve.train")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path, help="a study's suite.json")
    parser.add_argument("--features", type=Path, nargs="+", required=True, help="feature stores")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="0/1", help="this process's part, as i/n")
    options = command.parse(parser, arguments)
    log_to_terminal(logging.WARNING)
    train_all(options.spec, FeatureStore(options.features), options.out, options.shard)


def train_all(spec: Path, store: FeatureStore, out: Path, shard: str) -> None:
    """Train what is missing of this process's part, "i/n". Raises `ConfigError` for another."""
    for one in command.share(trainings(read_json(spec)), shard):
        train_one(one, store, out)


def train_one(
    one: Training, store: FeatureStore, out: Path, validation: FeatureStore | None = None
) -> Path:
    """The folder of a training, made or gone on with where it is not whole."""
    folder = out / one.folder
    if not is_trained(folder, store):
        recipe = make_recipe(store.encoder, one.preset, one.texts)
        logger.warning("%s %s %s seed %d", one.folder, one.preset, dict(one.settings), one.seed)
        train_selector(store, recipe, folder, one.seed, validation=validation)
    return folder


def is_trained(folder: Path, store: FeatureStore) -> bool:
    """Whether `folder` holds a whole training on the features of `store`."""
    if not (folder / "selector" / "model.safetensors").exists():
        return False
    return bool(read_json(folder / "train.json").get("features") == store.fingerprint)


if __name__ == "__main__":
    command.run(main, "checkpoint")
