"""Train a selector on stored features; `tokensieve train selector` is its command line.

Every step draws its batch and its noise from (seed, step) alone, so that a resumed run repeats the
uninterrupted one exactly. Accelerate finds the devices and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.data.extras import need
from tokensieve.data.features import FeatureStore
from tokensieve.errors import ConfigError
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.config import ReconstructorConfig
from tokensieve.nn.ranking import calibrate
from tokensieve.train.batches import Batches, Rows, generator_of, some_of
from tokensieve.train.calibrate import whole_crops
from tokensieve.train.checkpoint import load_checkpoint
from tokensieve.train.journal import check_tracker, flat
from tokensieve.train.loop import Run
from tokensieve.train.recipe import Recipe, TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


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
    checkpoint of another training, or a batch that processes do not divide.
    """
    out = Path(out)
    config = recipe.train.resolved(len(store), store.encoder)
    recipe = replace(recipe, train=config, reconstructor=_with_patch(recipe, store))
    held_N = held_out(store, holdout if validation is None else 0.0)
    rows = Rows.of(store, recipe.mix, ~held_N)
    accelerator = make_accelerator(out, trackers)
    batches = Batches(
        store, rows, config.batch, seed, recipe.reconstructor.image_depth > 0,
        config.accumulate, accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    judged = validation or store
    judge_N = held_N if validation is None else torch.ones(len(validation), dtype=torch.bool)
    record: dict[str, Any] = {
        "recipe": recipe.to_dict(), "seed": seed, "features": store.fingerprint, "holdout": holdout,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SelectorAutoencoder(recipe.selector, recipe.reconstructor, recipe.objective)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr or 0.0)
    first = load_checkpoint(out, model, optimiser, record)
    if first == 0:
        _fit_normaliser(model, store, rows, config, seed)
    out.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("tokensieve", config=flat(record["recipe"]))
    run = Run(
        accelerator, model, optimiser, recipe, out, record, judged,
        some_of(judge_N.nonzero()[:, 0], recipe.run.validation_crops),
    )  # fmt: skip
    run.train(batches, first)
    model.eval().to("cpu")
    if accelerator.is_main_process:
        if store.encoder.grid is not None:
            calibrate(model.selector, whole_crops(store, CALIBRATION))
        model.selector.save_pretrained(out / "selector")
        model.reconstructor.save_pretrained(out / "reconstructor")
        if model.image is not None:
            model.image.save_pretrained(out / "image")
    accelerator.end_training()
    return model


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

    Raises `ConfigError` unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"Expected `holdout` in [0, 1). Got {share}.")
    if share == 0:
        return torch.zeros(len(store), dtype=torch.bool)
    apart = max(2, round(1 / share))
    held: Bool[Tensor, "N"] = store.picture_N % apart == apart - 1
    return held


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
    generator = generator_of(seed, -1)
    if rows.weights_N is None:
        order = torch.randperm(len(rows.rows_N), generator=generator)
        chosen = rows.rows_N[order[: config.normaliser_crops]]
    else:
        chosen = rows.draw(config.normaliser_crops, generator)
    crops = store.batch(chosen)
    tokens = crops.features if crops.valid is None else crops.features[crops.valid][None]
    model.selector.fit_normaliser(tokens)
