"""Train the encoder, or go on training it: `python -m lab.nano2.train_encoder --out FOLDER`.

A step depends on the checkpoint and its own number alone; the level rises where the averaged
weights read enough of pages they have not seen, at a check, never by the clock.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from lab import command
from lab.nano.clip import normalise
from lab.nano.muon import Muon
from lab.nano.state import Log
from lab.nano2.encoder import (
    DenseEncoder,
    EncoderRecipe,
    Steps,
    accuracy,
    loss_of,
)
from lab.nano2.keep import Training
from lab.nano2.pages import HARDEST, page


def rate_at(step: int, recipe: EncoderRecipe, begun: int = 0) -> float:
    """Up from step `begun`, level, and from `decay_from` on down to nothing."""
    if step < begun + recipe.warmup:
        return recipe.rate * (step - begun + 1) / recipe.warmup
    left = (recipe.steps - step) / (recipe.steps - recipe.decay_from)
    return recipe.rate * min(1.0, left)


def averaged_model(averaged: dict[str, Tensor], recipe: EncoderRecipe) -> DenseEncoder:
    """A model with the averaged weights."""
    model = DenseEncoder(recipe)
    model.load_state_dict(averaged)
    return model.eval()


def check(
    averaged: dict[str, Tensor], recipe: EncoderRecipe, level: int, pages: int
) -> dict[str, Any]:
    """Accuracy at the level trained at, at the hardest, and at that on fonts and layouts unseen."""
    model = averaged_model(averaged, recipe)
    sets = {"level": (level, True), "hard": (HARDEST, True), "unseen": (HARDEST, False)}
    found: dict[str, Any] = {}
    for name, (hard, seen) in sets.items():
        drawn = [page(recipe.seed, "val", index, hard, seen) for index in range(pages)]
        found |= {f"{name}.{k}": v for k, v in accuracy(model, drawn).items()}
    return found


def train(recipe: EncoderRecipe, out: Path, until: int, begin: Path | None = None) -> None:
    """Train to step `until` of the recipe's schedule; the checkpoint is out/encoder.safetensors.

    `begin` is a file of `lab.nano2.ship`: its weights, step and level are begun with, its moments
    are lost. It counts only where there is no checkpoint yet.
    """
    torch.manual_seed(recipe.seed)
    model = DenseEncoder(recipe)
    state: dict[str, Any] = {"step": 0, "level": 0, "recipe": recipe.asdict()}
    if begin is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(begin).items()})
        shipped = json.loads(begin.with_suffix(".json").read_text())["state"]
        state |= {"step": shipped["step"], "level": shipped["level"], "begun": shipped["step"]}
    run = Training(out / "encoder.safetensors", model, Muon(model, recipe.matrix_rate), state)
    log = Log(out / "encoder.jsonl")
    log.write(stage="begin", **run.state)
    while run.step < until:
        level = run.state["level"]
        last = min(until, (run.step // recipe.check_every + 1) * recipe.check_every)
        steps = Steps(recipe, run.step, last, level)
        for crops in DataLoader(steps, batch_size=None, num_workers=1, prefetch_factor=6):
            entry = one_step(run, crops, recipe)
            if run.step % 25 == 0:
                log.write(stage="encoder", step=run.step, level=level, **entry)
            if run.step < last:
                run.save_in_time()
        if run.step % recipe.check_every == 0:
            found = check(run.averaged, recipe, level, recipe.check_pages)
            log.write(stage="check", step=run.step, level=level, **found)
            if found["level.chars"] >= recipe.enough and level < HARDEST:
                run.state["level"] += 1
        run.save()


def one_step(
    run: Training, crops: tuple[Tensor, Tensor, Tensor], recipe: EncoderRecipe
) -> dict[str, float]:
    """One step of the optimiser and of the average; the loss's terms."""
    images, labels_BLK, places_BL = crops
    pixels = normalise(images)
    codes, seen = run.model(pixels, places_BL)
    chars, error = loss_of(codes, seen, labels_BLK, pixels, recipe)
    rate = rate_at(run.step, recipe, run.state.get("begun", 0))
    run.descend(chars + recipe.pixels * error, rate, recipe.average)
    return {"chars": chars.item(), "pixels": error.item()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--begin", type=Path, help="weights of lab.nano2.ship to go on from")
    parser.add_argument("--until", type=int, help="stop at this step; the recipe's last by default")
    parser.add_argument("--steps", type=int, default=EncoderRecipe.steps)
    parser.add_argument("--decay-from", type=int, default=EncoderRecipe.decay_from)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = command.parse(parser, arguments)
    recipe = EncoderRecipe(seed=given.seed, steps=given.steps, decay_from=given.decay_from)
    train(recipe, given.out, given.until or recipe.steps, given.begin)


if __name__ == "__main__":
    command.run(main, "checkpoint")
