"""Train nano by each recipe of recipes.json, and record what it reads of held-out pictures at each
budget: `python -m lab.studies.sieved.measure lab/studies/sieved/recipes.json --out runs/sieved`.

skipping.json is a short one about tokens that skip layers; its records go to results/skipping.
The loss is the mean over answers' tokens, in nats; lower is better.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lab import command
from tokensieve.data.llava import read_rows
from tokensieve.data.llava.write import write_llava
from tokensieve.evaluate import records
from tokensieve.fields import read_object
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.sieve import sieve
from tokensieve.train.console import log_to_terminal
from tokensieve.train.fusion.base import load_base
from tokensieve.train.fusion.batches import PROBLEMS, Conversations
from tokensieve.train.fusion.recipe import make_recipe
from tokensieve.train.fusion.run import Data, train_fusion
from tokensieve.train.fusion.tokens import IGNORED, Reader

RATES = ("train.lr=5e-4", "train.llm_lr=5e-4", "run.workers=1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Every recipe and seed of this process's part that has no record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="JSON of the recipes")
    parser.add_argument("--out", type=Path, required=True, help="pictures and trainings")
    parser.add_argument("--results", type=Path, default=Path("results/sieved"))
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th training, from the i-th")
    options = command.parse(parser, arguments)
    log_to_terminal()
    study = read_object(options.study, "the recipes of a study")
    wanted = [(recipe, seed) for recipe in study["recipes"] for seed in study["seeds"]]
    for recipe, seed in command.share(wanted, options.shard):
        config = {**{k: v for k, v in study.items() if k not in ("recipes", "seeds")},
                  "recipe": recipe, "seed": seed}  # fmt: skip
        path = options.results / f"{recipe['name']}-seed{seed}.json"
        if not records.is_done(path, config):
            records.write(path, measure(config, options.out))


def measure(config: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Train by one recipe, or go on; the loss by keep on held-out pictures, before and after."""
    recipe, seed, begun = config["recipe"], config["seed"], perf_counter()
    data = {split: pictures(out, split, config[name])
            for split, name in (("train", "pictures"), ("val", "held_out"))}  # fmt: skip
    settings = [f"train.steps={config['steps']}", f"train.batch={config['batch']}", *RATES]
    depths = tuple(recipe["depths"]) if "depths" in recipe else None
    loaded = load_base("nano", recipe["model"], seed=seed, depths=depths)

    def losses(one: Loaded) -> dict[str, float]:
        return {str(keep): held_out(one, data["val"], recipe["judged"], keep)
                for keep in config["keeps"]}  # fmt: skip

    before = losses(loaded)
    made = train_fusion(
        loaded, data["train"], make_recipe("stage2", [*settings, *recipe["settings"]]),
        out / recipe["name"] / f"seed{seed}", seed,
    )  # fmt: skip
    return {
        "config": dict(config),
        "identity": records.identity(config),
        "before": before,
        "loss": losses(load_model(str(made))),
        "seconds": round(perf_counter() - begun, 1),
        **records.provenance(),
    }


def pictures(out: Path, split: str, count: int) -> Data:
    """Conversations about so many generated pictures, made where they are not there."""
    folder = out / f"{split}-{count}"
    file = folder / "instruct.json"
    if not file.is_file():
        write_llava(folder, count, split)
    return Data(file, folder / "images")


@torch.no_grad()
def held_out(loaded: Loaded, data: Data, method: str, keep: float) -> float:
    """Mean loss over all answers' tokens about pictures, under a sieve."""
    loaded.model.eval()
    rows = Conversations(read_rows(data.file, data.images), Reader(loaded.processor, "chat", 2048))
    total, tokens = 0.0, 0
    with sieve(loaded.model, method, keep, history=1):
        for place, row in enumerate(rows.rows):
            if row.picture is None:
                continue
            batch = rows.collate([rows[place]])
            batch.pop(PROBLEMS)
            count = int((batch["labels"] != IGNORED).sum())
            total += float(loaded.model(**batch).loss) * count
            tokens += count
    return round(total / tokens, 5)


if __name__ == "__main__":
    command.run(main, "checkpoint")
