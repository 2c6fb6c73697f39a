"""Thresholds for counts="adaptive", measured on stored features of training pictures.

`python -m tokensieve.train.calibrate --selector FOLDER --features STORE [--out FOLDER]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.data.features import FeatureStore
from tokensieve.errors import TokensieveError
from tokensieve.functional.counts import SHARES
from tokensieve.nn.config import CHOICES
from tokensieve.nn.ranking import calibrate
from tokensieve.nn.selector import Selector
from tokensieve.train.batches import some_of


def whole_crops(
    store: FeatureStore, crops: int, size: int = 50
) -> Iterator[Float[Tensor, "_ L C"]]:
    """At most `crops` crops spread evenly over a store, `size` at a time, those with padding left
    out; nothing where crops differ in length."""
    if store.encoder.grid is None:
        return
    for part in torch.split(some_of(torch.arange(len(store)), crops), size):
        batch = store.batch(part)
        whole_B = batch.valid_BL.all(-1)
        if bool(whole_B.any()):
            yield batch.features[whole_B]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for an error of the caller's making."""
    parser = argparse.ArgumentParser(
        prog="python -m tokensieve.train.calibrate",
        description="Measure the thresholds of a selector's adaptive counts.",
    )
    parser.add_argument("--selector", required=True, help="folder or hub name of the weights")
    parser.add_argument("--features", nargs="+", required=True, help="stores it was trained on")
    parser.add_argument("--out", help="folder to write to; without it, the folder of --selector")
    parser.add_argument("--rule", choices=CHOICES["rule"], help="instead of the weights' rule")
    parser.add_argument("--crops", type=int, default=4000, help="crops to measure on, at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        changed = {"rule": options.rule} if options.rule else {}
        selector = Selector.from_pretrained(options.selector, **changed)
        features = FeatureStore(options.features)
        selector.config.encoder.require_same_output(features.encoder, owner="This selector")
        found = calibrate(selector, whole_crops(features, options.crops))
        selector.save_pretrained(Path(options.out or options.selector))
    except TokensieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for share, threshold in zip(SHARES, found, strict=True):
        sys.stdout.write(f"keep {share:g}: worth above {threshold:.3f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
