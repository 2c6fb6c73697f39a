"""The loop of a selector's training: steps, what is watched, what is written."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.data.progress import Stopped, whole_steps
from tokensieve.data.store.features import FeatureStore
from tokensieve.files import make_folder
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.pretrained import write_json
from tokensieve.train.batches import Batches, Part, some_of
from tokensieve.train.checkpoint import save_checkpoint
from tokensieve.train.journal import Journal, flat
from tokensieve.train.selector.recipe import Recipe
from tokensieve.train.selector.samples import write_samples
from tokensieve.train.selector.validate import validate, validation_text
from tokensieve.train.selector.watch import CollapseWatch, DivergenceWatch

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("tokensieve.train")
LAST_WORK = 1.0  # seconds at the exit of one of several processes
SAMPLES = 4  # pictures on a sheet of reconstructions
_alive: list[Any] = []


def end(accelerator: Any, model: Any) -> None:
    """End trackers and the group of processes.

    A group that goes with the last wrapped model waits for its threads, which may wait for Python:
    both wait for ever. So the model stays until the process ends. A thread that still has tensors
    to let go of when Python is already on its way out aborts the process; it gets time before.
    """
    if accelerator.num_processes > 1:
        if not _alive:
            atexit.register(sleep, LAST_WORK)
        _alive.append(model)
    accelerator.wait_for_everyone()
    accelerator.end_training()


@dataclass(frozen=True)
class Judged:
    """The crops that a training is validated on: `rows_N` of `store`, maybe none."""

    store: FeatureStore
    rows_N: Int[Tensor, "N"]


class Run:
    """One training on one process: the loop and what it writes."""

    def __init__(
        self, accelerator: Accelerator, model: SelectorAutoencoder,
        optimiser: torch.optim.Optimizer, recipe: Recipe, out: Path, record: dict[str, Any],
        judged: Judged,
    ) -> None:  # fmt: skip
        self.accelerator, self.recipe, self.config = accelerator, recipe, recipe.train
        self.bare = model
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        self.out, self.record = out, record
        self.judged = judged
        patience = min(recipe.run.patience, self.config.steps or 1)
        self.collapse, self.divergence = CollapseWatch(patience), DivergenceWatch(patience)

    def train(self, batches: Batches, first: int) -> None:
        """Steps `first` to the last. Raises `Stopped` behind a checkpoint if that is asked for."""
        steps, main = self.config.steps or 0, self.accelerator.is_main_process
        if main:
            write_json(self.out / "train.json", self.record)
            self.log = Journal(self.out / "log.jsonl", first)
            self.validations = Journal(self.out / "validation.jsonl", first)
        logger.info(
            "steps %d to %d, %d crops a step, %d process(es) on %s, %.2f M parameters",
            first + 1, steps, self.config.batch, self.accelerator.num_processes,
            self.accelerator.device, sum(p.numel() for p in self.bare.parameters()) / 1e6,
        )  # fmt: skip
        with whole_steps(self.accelerator.num_processes == 1) as stop:
            self._steps(batches, first, stop)
        if main:
            self.log.close()
            self.validations.close()

    def _steps(self, batches: Batches, first: int, stop: Callable[[], bool]) -> None:
        steps, run, main = self.config.steps or 0, self.recipe.run, self.accelerator.is_main_process
        self.started, self.first, self.read = perf_counter(), first, 0.0
        asked = self.started
        for step, parts in enumerate(batches.steps(first, steps), first):
            self.read += perf_counter() - asked
            losses = self.step(step, parts)
            self.divergence.see(losses["loss"], step)
            if run.on_collapse == "raise":
                self.collapse.see(losses["kept"])
            last = step + 1 == steps
            if main and (step % run.log_every == 0 or last):
                self.tell(step, losses)
            if (step + 1) % run.validate_every == 0 or last:
                self.validate(step)
            if (step + 1) % run.save_every == 0 or last or stop():
                if main:
                    save_checkpoint(self.out, step + 1, self.bare, self.optimiser, self.record)
                self.accelerator.wait_for_everyone()
            if stop() and not last:
                raise Stopped(f"step {step + 1} of {steps}")
            asked = perf_counter()

    def tell(self, step: int, losses: dict[str, float]) -> None:
        """Log one step: to log.jsonl, the trackers and the terminal."""
        spent = perf_counter() - self.started
        pace = (step + 1 - self.first) * self.config.batch / spent
        timed = {"s": round(spent, 2), "read_s": round(self.read, 3), "crops_per_s": round(pace, 2)}
        self.log.write({"step": step, **losses, **timed})
        self.accelerator.log(flat(losses), step=step)
        logger.info(
            "step %d of %d: loss %.4f, kept %.2f, %.1f crops/s, %.1f%% of the time reading",
            step + 1, self.config.steps, losses["loss"], losses["kept"], pace,
            100 * self.read / spent,
        )  # fmt: skip

    def step(self, step: int, parts: Sequence[Part]) -> dict[str, float]:
        """One optimiser step; the losses by name, over all processes."""
        accelerator, config = self.accelerator, self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate(step)
        self.optimiser.zero_grad(set_to_none=True)
        device = accelerator.device
        totals: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            crops = part.batch.to(device)
            sync = number == len(parts) or accelerator.num_processes == 1
            with (
                nullcontext() if sync else accelerator.no_sync(self.model),
                torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"),
            ):
                losses: dict[str, Tensor] = self.model(
                    crops.features, crops.valid, crops.grid, crops.pixels, part.generator
                )
                accelerator.backward(losses["loss"] / len(parts))
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / len(parts)
        if config.clip:
            accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        reduced: dict[str, Tensor] = accelerator.reduce(totals, "mean")
        found = {name: round(float(value), 6) for name, value in reduced.items()}
        self.optimiser.step()
        return found

    def validate(self, step: int) -> None:
        """Measure on the held-out crops, on the first process, and draw samples."""
        store, rows_N = self.judged.store, self.judged.rows_N
        if self.accelerator.is_main_process and len(rows_N):
            found = validate(self.bare, store, rows_N, self.config.batch)
            self.validations.write({"step": step, **found})
            self.accelerator.log(flat(found, "validation/"), step=step)
            logger.info("validation at step %d\n%s", step + 1, validation_text(found))
            if self.bare.image is not None:
                make_folder(self.out / "samples")
                write_samples(
                    self.out / "samples" / f"step-{step + 1:06d}.png", self.bare, store,
                    some_of(rows_N, SAMPLES), heading=f"step {step + 1}",
                )  # fmt: skip
        self.accelerator.wait_for_everyone()
