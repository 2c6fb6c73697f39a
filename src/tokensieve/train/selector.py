"""Train a selector on stored features: ``python -m tokensieve.train.selector --help``.

Every step draws its batch and its noise from (seed, step) alone, so that a resumed run repeats the
uninterrupted one exactly. B crops of a batch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from tokensieve.data.features import FeatureBatch, FeatureStore
from tokensieve.errors import ConfigError, TokensieveError, TrainingError, UnsupportedError
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.config import (
    Config,
    ObjectiveConfig,
    ReconstructorConfig,
    SelectorConfig,
    option,
)
from tokensieve.nn.pretrained import read_json, write_json
from tokensieve.train.checkpoint import load_checkpoint, save_checkpoint
from tokensieve.train.settings import describe, parse_settings


@dataclass(frozen=True)
class TrainConfig(Config):
    """The schedule: Adam, linear warm-up, cosine to zero."""

    steps: int = option(600, "Optimiser steps.")
    batch: int = option(16, "Crops of a step.")
    lr: float = option(1e-3, "Peak learning rate.")
    warmup: float = option(0.05, "Share of the steps spent warming up.")
    clip: float = option(1.0, "Largest gradient norm; 0: no clipping.")
    log_every: int = option(20, "Steps between two lines of log.jsonl.")
    save_every: int = option(100, "Steps between two checkpoints.")
    normaliser_crops: int = option(1024, "Crops from which mean and std are measured.")
    patience: int = option(50, "Steps the mask may be all ones or all zeros before it is an error.")
    on_collapse: str = option("raise", "raise, or log (ablations show the collapse).")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch", "log_every", "save_every", "normaliser_crops", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected `{name}` of at least 1. Got {getattr(self, name)}.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"Expected `lr` above 0. Got {self.lr}.")
        if self.on_collapse not in ("raise", "log"):
            raise ConfigError(f"Expected `on_collapse` raise or log. Got {self.on_collapse}.")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass(frozen=True)
class Recipe:
    """Everything a training depends on, apart from its features and seed."""

    selector: SelectorConfig
    reconstructor: ReconstructorConfig
    objective: ObjectiveConfig
    train: TrainConfig

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {name: getattr(self, name).to_dict() for name in self.__dataclass_fields__}


SECTIONS: dict[str, type[Config]] = {
    "selector": SelectorConfig,
    "reconstructor": ReconstructorConfig,
    "objective": ObjectiveConfig,
    "train": TrainConfig,
}


class CollapseWatch:
    """Notices a mask that stays all ones or all zeros, which ranks nothing.

    Raises `TrainingError` from `see` once `patience` steps in a row were so.
    """

    def __init__(self, patience: int) -> None:
        self.shares: deque[float] = deque(maxlen=patience)

    def see(self, kept: float) -> None:
        """Take the share of kept tokens of one step."""
        self.shares.append(kept)
        if len(self.shares) < (self.shares.maxlen or 1):
            return
        if min(self.shares) > 0.995:
            state, advice = "ones", "raise objective.a1 or use objective.reduction=rms"
        elif max(self.shares) < 0.005:
            state, advice = "zeros", "lower objective.a1 or set objective.p above 0"
        else:
            return
        raise TrainingError(
            f"Expected a mask that drops some tokens and keeps some. It was all {state} for "
            f"{len(self.shares)} steps: {advice}, or standardise features."
        )


def train_selector(
    features: FeatureStore, recipe: Recipe, out: str | Path, seed: int = 0
) -> SelectorAutoencoder:
    """Train, log to `out`/log.jsonl, and save `out`/selector and `out`/reconstructor.

    Resumes from `out`/checkpoint where there is one of the same recipe and seed.

    Raises `TrainingError` if the mask collapses or the loss is not finite.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config, record = (
        recipe.train,
        {"recipe": recipe.to_dict(), "seed": seed, "crops": len(features)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SelectorAutoencoder(recipe.selector, recipe.reconstructor, recipe.objective)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr)
    first = load_checkpoint(out / "checkpoint", model, optimiser, record)
    if first == 0:
        sample = _generator(seed, -1)
        rows = torch.randperm(len(features), generator=sample)[: config.normaliser_crops]
        model.selector.fit_normaliser(_whole(features.batch(rows)).features)
    write_json(out / "train.json", record)
    watch, start = CollapseWatch(min(config.patience, config.steps)), perf_counter()
    with (out / "log.jsonl").open("a" if first else "w", encoding="utf-8") as log:
        for step in range(first, config.steps):
            losses = train_step(model, optimiser, features, config, seed, step)
            if config.on_collapse == "raise":
                watch.see(losses["kept"])
            if step % config.log_every == 0 or step == config.steps - 1:
                line = {"step": step, **losses, "s": round(perf_counter() - start, 2)}
                log.write(json.dumps(line) + "\n")
                log.flush()
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save_checkpoint(out / "checkpoint", model, optimiser, {**record, "step": step + 1})
    model.eval()
    model.selector.save_pretrained(out / "selector")
    model.reconstructor.save_pretrained(out / "reconstructor")
    return model


def train_step(
    model: SelectorAutoencoder,
    optimiser: torch.optim.Optimizer,
    features: FeatureStore,
    config: TrainConfig,
    seed: int,
    step: int,
) -> dict[str, float]:
    """One optimiser step; the losses by name. Raises `TrainingError` if they are not finite."""
    generator = _generator(seed, step)
    rows = torch.randint(len(features), (config.batch,), generator=generator)
    batch = _whole(features.batch(rows, pixels=model.image is not None))
    losses: dict[str, torch.Tensor] = model(
        batch.features, grid=features.encoder.grid, pixels=batch.pixels, generator=generator
    )
    if not bool(torch.isfinite(losses["loss"])):
        raise TrainingError(
            f"Expected a finite loss. Got {float(losses['loss'])} at step {step}. Check the "
            "features for NaN, or lower train.lr."
        )
    for group in optimiser.param_groups:
        group["lr"] = config.rate(step)
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(losses["loss"])
    if config.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimiser.step()
    return {name: round(float(value.detach()), 6) for name, value in losses.items()}


def _whole(batch: FeatureBatch) -> FeatureBatch:
    """`batch`, if every token of it is real. Raises `UnsupportedError` if some are padding."""
    if batch.valid is not None:
        raise UnsupportedError(
            "Expected crops of equal length whose tokens all reach the LLM. Got padding among "
            "them. Train on features of a family with one grid, such as LLaVA-1.5."
        )
    return batch


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + step + 1) & 0x7FFF_FFFF_FFFF)


def make_recipe(features: FeatureStore, settings: Sequence[str]) -> Recipe:
    """The default recipe for an encoder with `section.field=value` settings applied.

    Raises `ConfigError` for a setting that does not exist or does not parse.
    """
    values = parse_settings(settings, SECTIONS)
    encoder = {"encoder": features.encoder}
    return Recipe(
        SelectorConfig.from_dict({**encoder, **values["selector"]}),
        ReconstructorConfig.from_dict({**encoder, **values["reconstructor"]}),
        ObjectiveConfig.from_dict(values["objective"]),
        TrainConfig.from_dict(values["train"]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for an error of the caller's making."""
    parser = argparse.ArgumentParser(
        prog="python -m tokensieve.train.selector",
        description="Train a selector on stored features of a frozen vision encoder.",
        epilog="settings:\n" + describe(SECTIONS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--features", nargs="+", required=True, help="stores of `tokensieve extract`"
    )
    parser.add_argument("--out", required=True, help="folder for weights, log and checkpoints")
    parser.add_argument("--config", help="JSON file of settings, e.g. experiments/selector.json")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.field=value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        features = FeatureStore(options.features)
        stored = read_json(Path(options.config)) if options.config else {}
        settings = [f"{name}={json.dumps(value)}" for name, value in stored.items()]
        recipe = make_recipe(features, [*settings, *options.set])
        train_selector(features, recipe, options.out, options.seed)
    except TokensieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
