"""Train a model with a fusion projector; `tokensieve train fusion` is its command line.

The Trainer of Transformers runs the steps. Which rows a step reads follows from the seed alone, so
that a resumed run repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from tokensieve.data.extras import need
from tokensieve.data.llava import Found, read_rows, reasons, refuse, told
from tokensieve.data.progress import Stopped, whole_steps
from tokensieve.data.provenance import git, version_of
from tokensieve.errors import WeightsError
from tokensieve.fields import check_number
from tokensieve.folders import Kind, check_ours, claimed, told_in
from tokensieve.hf.families.fingerprint import state_hash
from tokensieve.hf.models.loaded import Loaded
from tokensieve.nn.pretrained import read_json, write_json
from tokensieve.train.fusion.batches import UNREADABLE, Conversations, order_of
from tokensieve.train.fusion.checkpoint import find_checkpoint, mark_whole
from tokensieve.train.fusion.model import choose_parts, frozen_to, projector_of
from tokensieve.train.fusion.recipe import Recipe, uses_bf16
from tokensieve.train.fusion.sharding import processes, wrapping
from tokensieve.train.fusion.sieving import Sieving
from tokensieve.train.fusion.tokens import Reader
from tokensieve.train.journal import Journal
from tokensieve.train.room import check_room
from tokensieve.train.selector.loop import end

if TYPE_CHECKING:
    from tokensieve.train.fusion.trainer import FusionTrainer

logger = logging.getLogger("tokensieve.train")
RUN = Kind("the training of a fusion projector", told_in("train.json", "weights", "projector"))
_PACKAGES = ("tokensieve", "torch", "transformers", "accelerate", "peft", "deepspeed")


@dataclass(frozen=True)
class Data:
    """Rows in LLaVA's layout: their file, and the folder their pictures lie in."""

    file: str | Path
    images: str | Path | None = None


def train_fusion(
    loaded: Loaded,
    data: Data,
    recipe: Recipe,
    out: str | Path,
    seed: int = 0,
    *,
    skip_bad_rows: bool = False,
    parallel: Mapping[str, Any] | None = None,
) -> Path:
    """Train the model of `loaded` on the rows of `data`; the folder of what came of it.

    Writes `out`/model, `out`/projector.safetensors, after LoRA `out`/adapter, train.json and
    log.jsonl. Goes on from the checkpoint in `out` where there is one of the same training.

    parallel: what `read_parallel` gives; None: every process holds the model.

    Raises `InputError` for rows that cannot be learned from, unless they are skipped;
    `ConfigError` for the checkpoint of another training, a folder that holds anything else or that
    another run is at, too few rows or a batch that processes do
    not divide; `TrainingError` where the loss is no number; `MissingPackageError`.
    """
    need("accelerate", "fusion", "to train")
    out, seed = Path(out), check_number("seed", seed, low=0, high=2**32 - 1)
    check_ours(out, RUN)
    recipe.train.shares(processes())
    rows, found = _rows(loaded, data, recipe, skip_bad_rows)
    steps = recipe.steps(len(rows))
    check_room(
        steps * recipe.train.batch * 40, f"the order of {steps:,} steps",
        "Set fewer train.steps, or fewer epochs.",
    )  # fmt: skip
    places = order_of(rows, recipe.train.batch, steps, seed, recipe.data.order)
    sieving = Sieving.of(loaded.model, recipe, seed, steps)
    work = Work(found, rows, places, skip_bad_rows, steps, seed, dict(parallel or {}), sieving)
    record = _record(loaded, recipe, work)
    whole = find_checkpoint(out, record, clean=False)
    if whole is not None and whole[1] == steps and _finished(out):
        logger.info("step %d of %d: nothing is left to do in %s", steps, steps, out)
        return out / "model"
    run = _Run(loaded, recipe, out, work, record)
    with claimed(out, RUN) if run.first else nullcontext():
        run.train()
    return out / "model"


@dataclass(frozen=True)
class Work:
    """What a training reads, in which order, and how: settled before its first step.

    found: the file's rows and what is wrong with others. places: of `rows`, step after step.
    parallel: `fsdp` or `deepspeed` settings, or none. sieving: what leaves tokens out, if any.
    """

    found: Found
    rows: Conversations
    places: list[int]
    skip_bad_rows: bool
    steps: int
    seed: int
    parallel: dict[str, Any]
    sieving: Sieving | None = None


class _Run:
    """One training on one process."""

    def __init__(
        self, loaded: Loaded, recipe: Recipe, out: Path, work: Work, record: dict[str, Any]
    ) -> None:
        self.loaded, self.recipe, self.out = loaded, recipe, out
        self.work, self.record = work, record
        self.first = os.environ.get("RANK", "0") == "0"
        self.unreadable: dict[str, str] = {}

    def train(self) -> None:
        """Every step that is left, then what is left to write."""
        from tokensieve.train.fusion.export import export

        config = self.loaded.model.config
        kept = {k: v for k, v in vars(config).items() if k == "use_cache"}
        self.trainer = self._trainer()
        self.trainer.accelerator.wait_for_everyone()
        whole = find_checkpoint(self.out, self.record, clean=self.first)
        if self.first:
            self._begin(0 if whole is None else whole[1])
        self.trainer.accelerator.wait_for_everyone()
        try:
            self._steps(None if whole is None else str(whole[0]))
        except UnpicklingError as error:
            raise WeightsError(
                f"Expected numbers alone in the checkpoint in {self.out}. Got a file that would "
                "run code when read; it was not. Delete the checkpoint."
            ) from error
        finally:
            vars(config).pop("use_cache", None)  # the Trainer switches it off for good
            vars(config).update(kept)
            if self.first:
                self.log.close()
        self._count_unreadable()
        export(self.trainer, self.loaded.processor, self.recipe, self.out)
        if self.first:
            self._write_record(finished=True)
            skipped = self._skipped()
            if skipped:
                logger.info("left out: %s", told(skipped))
        end(self.trainer.accelerator, self.trainer.model_wrapped)

    def _trainer(self) -> FusionTrainer:
        """Transformers' Trainer over the parts that learn, with our callbacks for its own."""
        from transformers import PrinterCallback

        from tokensieve.train.fusion.trainer import FusionTrainer, Marks, Watch, arguments_of

        recipe, work = self.recipe, self.work
        shared = wrapping(work.parallel, self.loaded.model)
        arguments = arguments_of(recipe, self.out, work.steps, work.seed, processes(), shared)
        model = choose_parts(self.loaded.model, recipe, work.seed)
        if uses_bf16(recipe) and not work.parallel:
            frozen_to(model, torch.bfloat16)
        trainer = FusionTrainer(
            model, arguments, work.rows, work.places, recipe, work.skip_bad_rows, work.sieving
        )
        trainer.remove_callback(PrinterCallback)
        for callback in (Watch(self.tell), Marks(self.mark)):
            trainer.add_callback(callback)
        return trainer

    def _steps(self, checkpoint: str | None) -> None:
        """The steps behind `checkpoint`. Raises `Stopped` behind one if that is asked for."""
        from tokensieve.train.fusion.trainer import Ends

        with whole_steps(processes() == 1) as stop:
            self.trainer.add_callback(Ends(stop))
            self.trainer.train(resume_from_checkpoint=checkpoint)
            if stop() and (done := self.trainer.state.global_step) < self.work.steps:
                raise Stopped(f"step {done} of {self.work.steps}")

    def tell(self, step: int, logs: dict[str, float]) -> None:
        """Log one step: to log.jsonl and the terminal."""
        seconds = perf_counter() - self.started
        sieving = self.work.sieving
        more = {} if sieving is None else sieving.told(step)
        self.log.write({"step": step, "loss": logs["loss"], "lr": logs.get("learning_rate"),
                        "grad_norm": logs.get("grad_norm"), "s": round(seconds, 2),
                        **more})  # fmt: skip
        logger.info(
            "step %d of %d: loss %.4f, %.1f s", step + 1, self.work.steps, logs["loss"], seconds
        )

    def mark(self, step: int) -> None:
        """Say that a checkpoint is whole, once every process has written its part."""
        self._count_unreadable()
        self.trainer.accelerator.wait_for_everyone()
        if self.first:
            mark_whole(self.out, step, self.record)
            self._write_record()
        self.trainer.accelerator.wait_for_everyone()

    def _begin(self, done: int) -> None:
        self.started = perf_counter()
        self.log = Journal(self.out / "log.jsonl", done)
        self._write_record()
        learn = sum(p.numel() for p in self.trainer.model.parameters() if p.requires_grad)
        logger.info(
            "steps %d to %d, %d rows a step of %d, %d process(es) on %s, %.2f M parameters learn",
            done + 1, self.work.steps, self.recipe.train.batch, len(self.work.rows), processes(),
            self.trainer.args.device, learn / 1e6,
        )  # fmt: skip

    def _count_unreadable(self) -> None:
        from accelerate.utils import gather_object

        for part in gather_object([self.trainer.unreadable]):
            for place, message in part.items():
                if str(place) not in self.unreadable:
                    self.unreadable[str(place)] = message
                    logger.info("left out: %s", message)

    def _skipped(self) -> dict[str, int]:
        counts = reasons(self.work.found.bad)
        return counts | ({UNREADABLE: len(self.unreadable)} if self.unreadable else {})

    def _write_record(self, finished: bool = False) -> None:
        """train.json: what this training is, what made it, what it left out."""
        write_json(self.out / "train.json", {
            **self.record, "run": self.recipe.run.to_dict(), "skipped": self._skipped(),
            "commit": git("rev-parse", "HEAD"), "finished": finished,
            "versions": {name: version_of(name) for name in _PACKAGES}
            | {"python": platform.python_version()},
        })  # fmt: skip


def _rows(loaded: Loaded, data: Data, recipe: Recipe, skip: bool) -> tuple[Conversations, Found]:
    """Rows that can be learned from. Raises `InputError` for others, unless they are skipped."""
    found = read_rows(data.file, data.images)
    reader = Reader(loaded.processor, recipe.data.form, recipe.data.max_length, recipe.data.end)
    logger.info("checking %d rows of %s", len(found.rows), found.file)
    rows = Conversations(found, reader)
    if not skip:
        refuse(found)
    if found.bad:
        logger.info("left out: %s", told(reasons(found.bad)))
    if reader.end and recipe.data.end is None and recipe.data.form == "chat":
        logger.info("the chat template has no end of turn: %r stands behind answers", reader.end)
    return rows, found


def _finished(out: Path) -> bool:
    """Whether `out`/model is of the training in `out`; one of an earlier training may lie there."""
    file = out / "train.json"
    return (out / "model").is_dir() and file.is_file() and bool(read_json(file).get("finished"))


def _record(loaded: Loaded, recipe: Recipe, work: Work) -> dict[str, Any]:
    """What decides the result, as a checkpoint remembers it."""
    _, turns = recipe.train.shares(processes())
    return {
        "recipe": recipe.to_dict(),
        "bf16": uses_bf16(recipe),
        "seed": work.seed,
        "steps": work.steps,
        "processes": processes(),  # each has a state of chance of its own
        "parts": turns * processes(),
        "model": loaded.name,
        "weights": {
            "projector": state_hash(projector_of(loaded.model)),
            "output": state_hash(loaded.model.get_output_embeddings()),
        },
        "data": {
            "content": hashlib.sha256(work.found.file.read_bytes()).hexdigest()[:16],
            "rows": len(work.rows),
            "visual_tokens": work.rows.reader.visual,
            "end": work.rows.reader.end,
        },
        "parallel": work.parallel,
    }
