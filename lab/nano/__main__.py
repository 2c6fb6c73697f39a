"""`python -m lab.nano --out runs/nano`: make the embedded model from nothing.

Stages, in order: pool (generated pictures), encoder, features, lm, export. Every stage goes on
from its last checkpoint; `all` runs what is missing. `only-control` makes the second language
model, on the encoder inside the package.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lab import command
from lab.nano.encoder import train_encoder
from lab.nano.export import MODEL, export_control, export_nano
from lab.nano.features import cache_features
from lab.nano.lm import train_reader
from lab.nano.parallel import run
from lab.nano.pool import RUN, make_pool
from lab.nano.recipe import Recipe
from lab.nano.state import Log
from tokensieve.errors import TrainingError
from tokensieve.files import written_folder
from tokensieve.folders import check_ours, claimed
from tokensieve.hf.models.nano import NANO, load_nano

STAGES = ("pool", "encoder", "features", "lm", "export")
CONTROL = ("pool", "shipped-encoder", "features", "control", "export-control")


def shrink(recipe: Recipe, scale: float) -> Recipe:
    """The same recipe with every number of steps and shards multiplied by `scale`."""

    def fewer(count: int) -> int:
        return max(1, round(count * scale))

    def phases(given: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
        return tuple((fewer(steps), tokens, size) for steps, tokens, size in given)

    encoder = replace(recipe.encoder, steps=fewer(recipe.encoder.steps))
    lm = replace(
        recipe.lm,
        phases=phases(recipe.lm.phases),
        control_phases=phases(recipe.lm.control_phases),
    )
    return replace(recipe, train_shards=fewer(recipe.train_shards), encoder=encoder, lm=lm)


def run_stage(stage: str, recipe: Recipe, out: Path, target: Path) -> None:
    """Run one stage of STAGES or CONTROL."""
    shards = [("train", n) for n in range(recipe.train_shards)]
    shards += [("val", n) for n in range(recipe.val_shards)]
    log = Log(out / f"{stage}.jsonl")
    if stage == "pool":
        run(recipe.workers, make_pool, out / "pool", shards, recipe.shard)
    elif stage == "encoder":
        run(recipe.workers, train_encoder, recipe, out, log)
    elif stage == "shipped-encoder":
        save_shipped_encoder(out / "encoder")
    elif stage == "features":
        run(recipe.workers, cache_features, out, shards)
    elif stage in ("lm", "control"):
        run(recipe.workers, train_reader, recipe, out, log, stage == "control")
    elif stage == "export":
        export_nano(recipe, out, target)
    else:
        export_control(recipe, out, target)


def save_shipped_encoder(folder: Path) -> None:
    """The encoder inside the package.

    Raises `TrainingError` beside an encoder in training: the control wants a folder of its own.
    """
    if (state := folder.with_name("encoder-state")).exists():
        raise TrainingError(
            f"Expected a folder without an encoder in training. Got {state}. Choose another --out."
        )
    if not folder.exists():
        with written_folder(folder) as part:
            load_nano()[0].model.vision_tower.save_pretrained(part)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(prog="python -m lab.nano", description=__doc__)
    single = dict.fromkeys((*STAGES, *CONTROL))
    parser.add_argument("--stage", choices=("all", "only-control", *single), default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/nano"), help="checkpoints and logs")
    parser.add_argument("--target", type=Path, default=NANO, help="where the model is written")
    parser.add_argument("--config", type=Path, help="JSON that overrides the recipe")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="shrink every stage")
    given = parser.parse_args(arguments)
    recipe = shrink(Recipe.load(given.config), given.steps_scale)
    stages = {"all": STAGES, "only-control": CONTROL}.get(given.stage, (given.stage,))
    if "export" in stages:
        check_ours(given.target, MODEL)
    with claimed(given.out, RUN):
        for stage in stages:
            run_stage(stage, recipe, given.out, given.target)


if __name__ == "__main__":
    command.run(main, "checkpoint")
