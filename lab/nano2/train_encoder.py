"""Train the encoder, or go on training it: `python -m lab.nano2.train_encoder --out FOLDER`.

A step depends on the checkpoint and its own number alone; the level rises where the averaged
weights read enough of pages they have not seen, at a check, never by the clock.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lab.nano.muon import Muon
from lab.nano.state import Log
from lab.nano2 import keep
from lab.nano2.encoder import (
    DenseEncoder,
    EncoderRecipe,
    Steps,
    accuracy,
    loss_of,
    normalised,
)
from lab.nano2.pages import HARDEST, page

SAVE_EVERY_S = 300.0


def rate_at(step: int, recipe: EncoderRecipe) -> float:
    """Up, level, and from `decay_from` on down to nothing."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
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
        state |= {"step": shipped["step"], "level": shipped["level"]}
    optimiser = Muon(model, recipe.matrix_rate)
    log, file = Log(out / "encoder.jsonl"), out / "encoder.safetensors"
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    state = keep.load(file, model, averaged, optimiser, state)
    log.write(stage="begin", **state)
    saved = time.monotonic()
    while state["step"] < until:
        first = state["step"]
        last = min(until, (first // recipe.check_every + 1) * recipe.check_every)
        steps = Steps(recipe, first, last, state["level"])
        for crops in DataLoader(steps, batch_size=None, num_workers=1, prefetch_factor=6):
            entry = one_step(model, optimiser, averaged, crops, state["step"], recipe)
            state["step"] += 1
            if state["step"] % 25 == 0:
                log.write(stage="encoder", step=state["step"], level=state["level"], **entry)
            if time.monotonic() - saved > SAVE_EVERY_S and state["step"] < last:
                keep.save(file, model, averaged, optimiser, state)
                saved = time.monotonic()
        if state["step"] % recipe.check_every == 0:
            found = check(averaged, recipe, state["level"], recipe.check_pages)
            log.write(stage="check", step=state["step"], level=state["level"], **found)
            if found["level.chars"] >= recipe.enough and state["level"] < HARDEST:
                state["level"] += 1
        keep.save(file, model, averaged, optimiser, state)
        saved = time.monotonic()


def one_step(
    model: DenseEncoder,
    optimiser: Muon,
    averaged: dict[str, Tensor],
    crops: tuple[Tensor, Tensor, Tensor],
    step: int,
    recipe: EncoderRecipe,
) -> dict[str, float]:
    """One step of the optimiser and of the average; the loss's terms."""
    images, labels_BLK, places_BL = crops
    optimiser.set_rate(rate_at(step, recipe))
    pixels = normalised(images)
    codes, seen = model(pixels, places_BL)
    chars, error = loss_of(codes, seen, labels_BLK, pixels, recipe)
    optimiser.zero_grad(set_to_none=True)
    (chars + recipe.pixels * error).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    follow = min(recipe.average, (step + 1) / (step + 10))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averaged[name].lerp_(value, 1 - follow)
    return {"chars": chars.item(), "pixels": error.item()}


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--begin", type=Path, help="weights of lab.nano2.ship to go on from")
    parser.add_argument("--until", type=int, help="stop at this step; the recipe's last by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = EncoderRecipe(seed=given.seed)
    train(recipe, given.out, given.until or recipe.steps, given.begin)


if __name__ == "__main__":
    main()
