"""Is reading features ever the bottleneck? Samples per second of a store against a training step.

    python -m lab.benchmarks.reading STORE... [--batch 16] [--steps 30]

Rows are drawn at random, as training draws them. Prints one JSON object; `ratio` is how many times
faster reading is than training, the image term not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from lab import command
from tokensieve.data.store.features import FeatureStore
from tokensieve.train.selector.recipe import make_recipe
from tokensieve.train.selector.run import train_selector


def reading(store: FeatureStore, batch: int, steps: int, *, pixels: bool) -> float:
    """Samples per second of random batches; the first ones, which open files, are left out."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(len(store), (batch,), generator=generator) for _ in range(steps + 3)]
    for rows in draws[:3]:
        store.batch(rows, pixels=pixels)
    start = perf_counter()
    for rows in draws[3:]:
        store.batch(rows, pixels=pixels)
    return batch * steps / (perf_counter() - start)


def training(store: FeatureStore, batch: int, steps: int) -> float:
    """Samples per second of the default recipe, reading included."""
    settings = [f"train.steps={steps}", f"train.batch={batch}", "train.log_every=1",
                "train.normaliser_crops=64"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train_selector(store, make_recipe(store.encoder, "default", settings), folder)
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").open()]
    return float(batch * (steps - 1) / (log[-1]["s"] - log[0]["s"]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    options = command.parse(parser)
    store = FeatureStore(options.stores)
    read = reading(store, options.batch, 10 * options.steps, pixels=False)
    told = {"crops": len(store), "batch": options.batch, "read_per_s": round(read)}
    if store.has_pixels:
        with_pixels = reading(store, options.batch, 10 * options.steps, pixels=True)
        told["read_with_pixels_per_s"] = round(with_pixels)
    train = training(store, options.batch, options.steps)
    print(json.dumps({**told, "train_per_s": round(train, 1), "ratio": round(read / train, 1)}))


if __name__ == "__main__":
    command.run(main)
