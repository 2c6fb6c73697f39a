"""Train a selector on stored features; `tokensieve train selector` is its command line.

Every step draws its batch and its noise from (seed, step) alone, so that a resumed run repeats the
uninterrupted one exactly. Accelerate finds the devices and processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.data.extras import need
from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import ConfigError, EncoderMismatchError
from tokensieve.fields import check_number
from tokensieve.folders import Kind, check_ours, claimed, told_in
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.config import ReconstructorConfig, TrainedBy
from tokensieve.nn.ranking import calibrate
from tokensieve.train.batches import Batches, Rows, generator_of, some_of
from tokensieve.train.calibration.selector import calibration_rows, whole_crops
from tokensieve.train.checkpoint import load_checkpoint
from tokensieve.train.journal import check_tracker, flat
from tokensieve.train.room import check_room, check_trainable
from tokensieve.train.selector.loop import Judged, Run, end, logger
from tokensieve.train.selector.recipe import Recipe, TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


NORMALISER_BYTES = 2_000_000_000  # of float32 tokens in memory at once
RUN = Kind("the training of a selector", told_in("train.json", "recipe", "selector"))
CALIBRATION = 512  # crops from which thresholds of adaptive counts are measured


def train_selector(
    store: FeatureStore,
    recipe: Recipe,
    out: str | Path,
    seed: int = 0,
    *,
    validation: FeatureStore | None = None,
    holdout: float = 0.0,
    trackers: Sequence[str] = (),
) -> SelectorAutoencoder:
    """Train, and save `out`/selector, `out`/reconstructor and, if asked, `out`/image.

    Writes log.jsonl, validation.jsonl and samples/ as it goes. Resumes from the newest checkpoint
    in `out` where there is one of the same recipe, seed and features.

    validation: crops to validate on; None: the share `holdout` of the pictures, which are then not
    trained on; 0: no validation.

    Raises `TrainingError` if the mask collapses or the loss diverges, `ConfigError` for a
    checkpoint of another training, a folder that holds anything else or that another run is at, a
    batch that processes do not divide or what this machine cannot hold,
    `EncoderMismatchError` for a validation store of another encoder.
    """
    out, seed = Path(out), check_number("seed", seed, low=0)
    check_ours(out, RUN)
    config = recipe.train.resolved(len(store), store.encoder)
    recipe = replace(recipe, train=config, reconstructor=_with_patch(recipe, store))
    _check_room(store, recipe)
    _check_validation(store, validation or store, recipe)
    held_N = held_out(store, 0.0 if validation else holdout)
    rows = Rows.of(store, recipe.mix, ~held_N)
    accelerator = make_accelerator(out, trackers)
    batches = Batches(
        store, rows, config.batch, seed, recipe.reconstructor.image_depth > 0,
        config.accumulate, accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    record = {
        "recipe": recipe.to_dict(), "seed": seed, "features": store.fingerprint,
        "trained_on": int((~held_N).sum()), "parts": config.accumulate * accelerator.num_processes,
    }  # fmt: skip
    model = _drawn(recipe, seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr or 0.0)
    with claimed(out, RUN) if accelerator.is_main_process else nullcontext():
        first = load_checkpoint(out, model, optimiser, record)
        if first == 0:
            _fit_normaliser(model, store, rows, config, seed)
        accelerator.init_trackers("tokensieve", config=flat(record["recipe"]))
        judged_N = torch.arange(len(validation)) if validation else held_N.nonzero()[:, 0]
        judged = Judged(validation or store, some_of(judged_N, recipe.run.validation_crops))
        run = Run(accelerator, model, optimiser, recipe, out, record, judged)
        _tell_shares(store, rows)
        run.train(batches, first)
        model.eval().to("cpu")
        if accelerator.is_main_process:
            _calibrate(model, store, rows, seed)
            _save(model, store, out, recipe.trained_by(len(rows.rows_N), seed))
        end(accelerator, run.model)
    return model


def _tell_shares(store: FeatureStore, rows: Rows) -> None:
    for name, share in rows.shares(store).items():
        logger.info("source %s: %.1f %% of the crops drawn", name, 100 * share)


def _drawn(recipe: Recipe, seed: int) -> SelectorAutoencoder:
    """A fresh model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SelectorAutoencoder(recipe.selector, recipe.reconstructor, recipe.objective)


def _check_room(store: FeatureStore, recipe: Recipe) -> None:
    """Raise `ConfigError` where a process could hold neither its part of a batch nor the model."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    crops = -(-recipe.train.batch // (recipe.train.accumulate * world))
    numbers = store.usual_tokens() * store.encoder.width
    check_room(
        crops * numbers * 4 * 3, f"{crops:,} crops at once, read ahead and rebuilt,",
        "Set a smaller train.batch, or a larger train.accumulate.",
    )  # fmt: skip
    parts = recipe.selector, recipe.reconstructor, recipe.objective
    check_trainable(lambda: SelectorAutoencoder(*parts))


def _calibrate(model: SelectorAutoencoder, store: FeatureStore, rows: Rows, seed: int) -> None:
    """Measure thresholds of adaptive counts, where there are crops without padding to do it on."""
    if store.encoder.grid is None:
        return
    chosen = calibration_rows(store, rows, CALIBRATION, generator_of(seed, -2))
    batches = whole_crops(store, chosen)
    if (first := next(batches, None)) is not None:
        calibrate(model.selector, chain([first], batches))


def _save(model: SelectorAutoencoder, store: FeatureStore, out: Path, by: TrainedBy) -> None:
    model.selector.config = replace(
        model.selector.config, encoder_weights=store.encoder_weights, trained_by=by
    )
    model.selector.save_pretrained(out / "selector")
    model.reconstructor.save_pretrained(out / "reconstructor")
    if model.image is not None:
        model.image.save_pretrained(out / "image")


def make_accelerator(out: Path, trackers: Sequence[str]) -> Accelerator:
    """Devices, processes and trackers.

    Raises `MissingPackageError` without Accelerate or a tracker's package, `UnknownNameError` for
    a tracker that Accelerate does not know.
    """
    accelerate = need("accelerate", "train", "to train")
    known = [check_tracker(name) for name in trackers]
    made: Accelerator = accelerate.Accelerator(
        mixed_precision="no", log_with=known or None, project_dir=out
    )
    return made


def held_out(store: FeatureStore, share: float) -> Bool[Tensor, "N"]:
    """True for the crops of `share` of the pictures, at even distances in the store.

    Crops of a picture, pictures of equal content and frames of a video stay together.

    Raises `ConfigError` unless 0 <= share < 1, or where there is nothing left to train on.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"Expected `holdout` in [0, 1). Got {share}.")
    held_N = torch.zeros(len(store), dtype=torch.bool)
    if share == 0:
        return held_N
    groups: Tensor = torch.unique(store.group_N)
    if len(groups) < 2:
        raise ConfigError(
            "Expected at least two pictures, to hold some out. Got one. Pass --validation with "
            "another store, or --holdout 0."
        )
    count = min(len(groups) - 1, max(1, round(share * len(groups))))
    return torch.isin(store.group_N, some_of(groups, count))


def _check_validation(store: FeatureStore, judged: FeatureStore, recipe: Recipe) -> None:
    """Raise where `judged` cannot say anything about what is learned from `store`."""
    if judged.encoder != store.encoder:
        raise EncoderMismatchError(
            f"Expected validation features of the encoder trained on, {store.encoder}. Got "
            f"{judged.encoder}. Extract them with the same model and site."
        )
    if recipe.reconstructor.image_depth and not judged.has_pixels:
        raise ConfigError(
            "Expected pixels in the validation store, for the image reconstructor. Got none. "
            "Extract it with --pixels."
        )


def _with_patch(recipe: Recipe, store: FeatureStore) -> ReconstructorConfig:
    """The reconstructor's config with the pixels along a token's side, where it draws pictures."""
    config = recipe.reconstructor
    if config.image_depth == 0 or config.patch:
        return config
    grid = store.encoder.grid
    pixels = store.batch(torch.tensor([0]), pixels=True).pixels if store.has_pixels else None
    if grid is None or pixels is None:
        raise ConfigError(
            "Expected features with one grid, stored together with pixels, for the image "
            f"reconstructor. Got {'no pixels' if grid else 'a varying grid'}. Extract with "
            "--pixels, or set reconstructor.image_depth=0."
        )
    return replace(config, patch=pixels.shape[-2] // grid[0])


def _fit_normaliser(
    model: SelectorAutoencoder, store: FeatureStore, rows: Rows, config: TrainConfig, seed: int
) -> None:
    """Measure mean and std on random crops, as many as fit into NORMALISER_BYTES."""
    generator = generator_of(seed, -1)
    if rows.weights_S is None:
        order = torch.randperm(len(rows.rows_N), generator=generator)
        chosen = rows.rows_N[order[: config.normaliser_crops]]
    else:
        chosen = rows.draw(config.normaliser_crops, generator)
    parts, size = [], 0
    for part in torch.split(chosen, 16):
        crops = store.batch(part)
        parts.append(crops.features[crops.valid_BL])
        size += parts[-1].numel() * 4
        if size > NORMALISER_BYTES:
            break
    model.selector.fit_normaliser(torch.cat(parts)[None])
