"""Train every shape: `python -m lab.studies.payback.train SUITE --features STORE`.

The suite says where the weights go; what is there from the same features is not trained again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lab import command
from lab.studies.payback.spec import Training, trainings
from tokensieve.data.store.features import FeatureStore
from tokensieve.evaluate.config import load_suite
from tokensieve.nn.pretrained import read_json
from tokensieve.train.console import log_to_terminal
from tokensieve.train.selector.recipe import make_recipe
from tokensieve.train.selector.run import train_selector

logger = logging.getLogger("tokensieve.train")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="lab/studies/payback/suite.json")
    parser.add_argument("--features", type=Path, nargs="+", required=True, help="feature stores")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--set", dest="settings", action="append", default=[],
                        help="SECTION.FIELD=VALUE for every shape")  # fmt: skip
    parser.add_argument("--shard", default="0/1", help="this process's part, as i/n")
    options = command.parse(parser, arguments)
    log_to_terminal(logging.WARNING)
    store = FeatureStore(options.features)
    for one in command.share(trainings(load_suite(options.suite)), options.shard):
        if not _done(one, store):
            more = [*one.shape.settings(), f"train.steps={options.steps}", *options.settings]
            logger.warning("%s seed %d", one.shape.name, one.seed)
            recipe = make_recipe(store.encoder, "default", more)
            train_selector(store, recipe, one.weights.parent, one.seed)


def _done(one: Training, store: FeatureStore) -> bool:
    """Whether its folder holds a whole training on the features of `store`."""
    if not (one.weights / "model.safetensors").exists():
        return False
    told = read_json(one.weights.parent / "train.json")
    return bool(told.get("features") == store.fingerprint)


if __name__ == "__main__":
    command.run(main, "checkpoint")
