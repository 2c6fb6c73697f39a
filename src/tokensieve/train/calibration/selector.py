"""Thresholds for counts="adaptive", measured on stored features of training pictures.

`python -m tokensieve.train.calibration.selector --selector FOLDER --features STORE [--out FOLDER]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import TokensieveError, UnsupportedError
from tokensieve.folders import check_ours
from tokensieve.functional.counts import SHARES
from tokensieve.nn.config import CHOICES
from tokensieve.nn.pretrained import weights_of
from tokensieve.nn.ranking import calibrate
from tokensieve.nn.selector import Selector
from tokensieve.train.batches import Rows, some_of


def calibration_rows(
    store: FeatureStore, rows: Rows, count: int, generator: torch.Generator
) -> Int[Tensor, "N"]:
    """At most `count` of the crops trained on: drawn by their weights where there are any, else
    one crop of each of so many pictures at even distances, the first of one, the second of the
    next and so on."""
    if rows.weights_S is not None:
        return rows.draw(count, generator)
    pictures, crops = torch.unique_consecutive(store.picture_N[rows.rows_N], return_counts=True)
    chosen = some_of(torch.arange(len(pictures)), count)
    first = (crops.cumsum(0) - crops)[chosen]
    return rows.rows_N[first + torch.arange(len(chosen)) % crops[chosen]]


def whole_crops(
    store: FeatureStore, rows: Int[Tensor, "N"], size: int = 50
) -> Iterator[Float[Tensor, "_ L C"]]:
    """The crops `rows`, `size` at a time, those with padding left out.

    Raises `UnsupportedError` for an encoder whose crops differ in length.
    """
    if store.encoder.grid is None:
        raise UnsupportedError(
            "Expected an encoder whose crops have one grid, to measure thresholds. Got one whose "
            "grid varies with the picture. Use counts='fixed'."
        )
    for part in torch.split(rows, size):
        batch = store.batch(part)
        whole_B = batch.valid_BL.all(-1)
        if bool(whole_B.any()):
            yield batch.features[whole_B]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for an error of the caller's making."""
    parser = argparse.ArgumentParser(
        prog="python -m tokensieve.train.calibration.selector",
        description="Measure the thresholds of a selector's adaptive counts.",
    )
    parser.add_argument("--selector", required=True, help="folder or hub name of the weights")
    parser.add_argument("--features", nargs="+", required=True, help="stores it was trained on")
    parser.add_argument("--out", help="folder to write to; without it, the folder of --selector")
    parser.add_argument("--rule", choices=CHOICES["rule"], help="instead of the weights' rule")
    parser.add_argument("--crops", type=int, default=512, help="crops to measure on, at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        out = Path(options.out or options.selector)
        check_ours(out, weights_of(Selector))
        changed = {"rule": options.rule} if options.rule else {}
        selector = Selector.from_pretrained(options.selector, **changed)
        features = FeatureStore(options.features)
        selector.config.encoder.require_same_output(features.encoder, owner="This selector")
        generator = torch.Generator().manual_seed(0)
        rows = calibration_rows(features, Rows.of(features), options.crops, generator)
        found = calibrate(selector, whole_crops(features, rows))
        selector.save_pretrained(out)
    except TokensieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for share, threshold in zip(SHARES, found, strict=True):
        sys.stdout.write(f"keep {share:g}: worth above {threshold:.3f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
