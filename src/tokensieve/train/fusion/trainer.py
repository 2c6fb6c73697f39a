"""Transformers' Trainer for conversations about pictures: batches in a given order, a frozen
encoder, a learning rate each for projector and LLM, checkpoints that hold what learns."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from tokensieve.errors import ConfigError, PictureError, TrainingError, WeightsError
from tokensieve.files import make_folder, refused_in_words, remove_tree
from tokensieve.nn.pretrained import read_weights, write_weights
from tokensieve.train.checkpoint import PREFIX
from tokensieve.train.fusion.batches import PROBLEMS, Conversations, Given
from tokensieve.train.fusion.model import base_of, is_new
from tokensieve.train.fusion.recipe import Recipe, uses_bf16
from tokensieve.train.fusion.sieving import Sieving

LEARNED = "learned.safetensors"  # of a checkpoint: the weights that learn


class FusionTrainer(Trainer):
    """The loss is the mean over all answers' tokens of a step, whatever process has them."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        rows: Conversations,
        places: Sequence[int],
        recipe: Recipe,
        skip_bad_rows: bool,
        sieving: Sieving | None = None,
    ) -> None:
        self.rows, self.places, self.recipe = rows, places, recipe
        self.skip_bad_rows, self.sieving = skip_bad_rows, sieving
        self.unreadable: dict[int, str] = {}
        self.encoder = base_of(model).model.vision_tower
        super().__init__(model, arguments, rows.collate, rows)

    model: Any  # untyped in Transformers

    @property
    def sharded(self) -> bool:
        """Whether no process holds all weights."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _get_train_sampler(self, *_: Any) -> Given:
        return Given(self.places)

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW without weight decay, what is new (projector, routers) and the LLM each with its
        learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        named = [
            (name, p)
            for name, p in (self.model if model is None else model).named_parameters()
            if p.requires_grad
        ]
        train = self.recipe.train
        groups = [
            {
                "params": [p for name, p in named if is_new(name) is new],
                "lr": rate,
                "weight_decay": 0.0,
            }
            for new, rate in ((True, train.lr), (False, train.llm_lr or train.lr))
        ]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Transformers' own, with the encoder as it is in use.

        Raises `PictureError` for a picture that cannot be read, unless bad rows are skipped.
        """
        self.encoder.eval()  # `training_step` puts the whole model in training mode
        for place, message in inputs.pop(PROBLEMS):
            if not self.skip_bad_rows:
                raise PictureError(
                    f"{message} Repair the picture, or leave such rows out with --skip-bad-rows."
                )
            self.unreadable[place] = message
        count = named.get("num_items_in_batch")
        if count is not None:  # of a step whose pictures are all unreadable it is 0
            named["num_items_in_batch"] = torch.as_tensor(count).clamp(min=1)
        inputs = {**inputs, "use_cache": False}
        step, under = self.state.global_step, self.sieving
        with nullcontext() if under is None else under.at(step, inputs):
            return super().compute_loss(model, inputs, *rest, **named)

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        """Transformers' own; where the disk refuses, nothing of it stays.

        Raises `ConfigError` there.
        """
        folder = Path(str(self.args.output_dir)) / f"{PREFIX}{self.state.global_step}"
        try:
            with refused_in_words(folder):
                super()._save_checkpoint(*given, **named)
        except ConfigError:
            remove_tree(folder)
            raise

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that learn; sharded ones lie in files of FSDP or DeepSpeed."""
        if self.sharded or not self.args.should_save:
            return
        folder = make_folder(output_dir or str(self.args.output_dir))
        write_weights(folder / LEARNED, self.learned())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored, learned = read_weights(Path(resume_from_checkpoint) / LEARNED), self.learned()
        if stored.keys() != learned.keys():
            raise WeightsError(
                f"Expected the weights of what learns in {resume_from_checkpoint}. Got others, such"
                f" as {min(stored.keys() ^ learned.keys())}. Delete the folder, or choose another "
                "--out."
            )
        for name, value in learned.items():
            if value.shape != stored[name].shape:
                raise WeightsError(
                    f"Expected {name} of shape {tuple(value.shape)} in {resume_from_checkpoint}. "
                    f"Got {tuple(stored[name].shape)}. Delete the folder."
                )
            value.copy_(stored[name])

    def learned(self) -> dict[str, Tensor]:
        """The parameters that learn, by name."""
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}


class Watch(TrainerCallback):
    """Hands what the Trainer logs to `tell` on the first process, and stops a run that diverged."""

    def __init__(self, tell: Any) -> None:
        self.tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Raises `TrainingError` for a loss that is no number."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"Expected a finite loss. Got {logs['loss']} at step {state.global_step}. Lower "
                "train.lr and train.llm_lr, or raise train.warmup."
            )
        if state.is_world_process_zero:
            self.tell(state.global_step - 1, logs)


class Marks(TrainerCallback):
    """Calls `mark(step)` once all processes have written a checkpoint."""

    def __init__(self, mark: Any) -> None:
        self.mark = mark

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.mark(state.global_step)


class Ends(TrainerCallback):
    """Ends the training behind a checkpoint once `stop()` says so, at the end of a step."""

    def __init__(self, stop: Any) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asks the Trainer for both."""
        if self.stop():
            control.should_save = control.should_training_stop = True


def arguments_of(
    recipe: Recipe, out: Path, steps: int, seed: int, processes: int, parallel: dict[str, Any]
) -> TrainingArguments:
    """The recipe as Transformers has it. parallel: `fsdp` or `deepspeed` settings, or none.

    Raises `ConfigError` where processes do not divide the batch.
    """
    train, gpu = recipe.train, torch.cuda.is_available()
    at_once, turns = train.shares(processes)
    made = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=turns,
        learning_rate=train.lr,
        weight_decay=0.0,
        optim="adamw_torch",
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(train.warmup * steps),
        max_grad_norm=train.clip,
        bf16=uses_bf16(recipe),
        tf32=True if gpu and torch.cuda.get_device_capability() >= (8, 0) else None,
        use_cpu=not gpu,
        average_tokens_across_devices=True,
        logging_steps=recipe.run.log_every,
        logging_nan_inf_filter=False,
        save_steps=recipe.run.save_every,
        dataloader_num_workers=min(recipe.run.workers, os.cpu_count() or 1),
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        report_to="none",
        seed=seed,
        **parallel,
    )
    if made.n_gpu > 1:  # a process without a launcher would feed every GPU a batch of its own
        made._n_gpu = 1
    return made
