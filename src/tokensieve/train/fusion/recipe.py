"""The recipe of a fusion projector's training: presets and settings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.nn.config import Config, option
from tokensieve.train.settings import parse_settings

PARTS = ("projector", "llm", "lora")
_CHOICES = {
    "parts": PARTS,
    "form": ("chat", "plain"),
    "order": ("length", "random"),
    "precision": ("auto", "no", "bf16"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
}


class _Section(Config):
    """Checks the choices of its fields."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (got := getattr(self, name, choices[0])) not in choices:
                raise UnknownNameError.of(name, str(got), choices)

    def _check_counts(self, *names: str) -> None:
        for name in names:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"Expected `{name}` of at least 1. Got {value}.")


@dataclass(frozen=True)
class TrainConfig(_Section):
    """What learns, and the schedule: AdamW without weight decay, linear warm-up, cosine to zero."""

    parts: str = option(
        "llm", "What learns: projector, llm (projector and LLM), lora (projector, LoRA in the LLM)."
    )
    steps: int | None = option(None, "Optimiser steps. none: as many as `epochs` take.")
    epochs: float = option(1.0, "Passes over the rows, where `steps` is none.")
    batch: int = option(128, "Rows of an optimiser step, over all processes.")
    per_device: int = option(16, "Rows a process takes at once, at most; the rest in turns.")
    lr: float = option(2e-5, "Peak learning rate of the projector.")
    llm_lr: float | None = option(None, "Peak learning rate of the LLM. none: the projector's.")
    warmup: float = option(0.03, "Share of the steps spent warming up.")
    clip: float = option(1.0, "Largest gradient norm; 0: no clipping.")
    precision: str = option("auto", "Mixed precision: bf16, no, or auto (bf16 where a GPU has it).")
    checkpointing: bool = option(True, "Compute the LLM's activations again to save memory.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("steps", "batch", "per_device")
        for name in ("lr", "llm_lr", "epochs"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"Expected `{name}` above 0. Got {value}.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"Expected `warmup` in [0, 1). Got {self.warmup}.")
        if not self.clip >= 0:
            raise ConfigError(f"Expected `clip` of 0 or more. Got {self.clip}.")

    def shares(self, processes: int) -> tuple[int, int]:
        """(rows a process takes at once, turns) for the batch. Raises `ConfigError`."""
        if self.batch % processes:
            raise ConfigError(
                f"Expected a batch that {processes} processes share evenly. Got train.batch="
                f"{self.batch}. Set it to a multiple of {processes}."
            )
        share = self.batch // processes
        at_once = min(self.per_device, share)
        if share % at_once:
            fits = [n for n in range(1, at_once + 1) if share % n == 0]
            raise ConfigError(
                f"Expected train.per_device to divide the {share} rows that each of {processes} "
                f"process(es) takes of a batch. Got {at_once}. Largest that does: {fits[-1]}."
            )
        return at_once, share // at_once


@dataclass(frozen=True)
class DataConfig(_Section):
    """How rows become tokens."""

    form: str = option("chat", "chat (the chat template) or plain (picture, caption, end).")
    max_length: int = option(2048, "Tokens of a row, its picture's included; longer is a bad row.")
    end: str | None = option(
        None,
        "Text behind each answer. none: the template's own end of turn, else the end of sequence.",
    )
    order: str = option("length", "length (rows of like length share a step) or random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("max_length")


@dataclass(frozen=True)
class LoraConfig(_Section):
    """LoRA in every linear layer of the LLM, where train.parts=lora."""

    rank: int = option(128, "Rank of the updates.")
    alpha: float = option(256.0, "Updates are scaled by alpha / rank.")
    dropout: float = option(0.05, "Dropout on what enters the updates.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("rank")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"Expected `alpha` above 0. Got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"Expected `dropout` in [0, 1). Got {self.dropout}.")


@dataclass(frozen=True)
class RunConfig(_Section):
    """What is watched and written; nothing here changes what is learned."""

    log_every: int = option(10, "Steps between two lines of log.jsonl.")
    save_every: int = option(500, "Steps between two checkpoints.")
    workers: int = option(
        4, "Processes that read ahead for each that trains, no more than the machine has cores."
    )
    dtype: str = option(
        "auto", "Numbers of out/model: float32, bfloat16, float16; auto: bfloat16 after bf16."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("log_every", "save_every")
        if self.workers < 0:
            raise ConfigError(f"Expected `workers` of 0 or more. Got {self.workers}.")


SECTIONS: dict[str, type[Config]] = {
    "train": TrainConfig,
    "data": DataConfig,
    "lora": LoraConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class Recipe:
    """Everything a training depends on, apart from model, data and seed; and `run`."""

    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what decides the result, ready for JSON."""
        wanted = ["train", "data", *(["lora"] if self.train.parts == "lora" else [])]
        sections = {name: getattr(self, name).to_dict() for name in wanted}
        del sections["train"]["per_device"]  # the number of parts of a batch says it
        return sections

    def steps(self, rows: int) -> int:
        """Optimiser steps on so many rows."""
        if self.train.steps is not None:
            return self.train.steps
        return max(1, math.ceil(self.train.epochs * rows / self.train.batch))


def preset_names() -> list[str]:
    """Names `--preset` takes."""
    folder = resources.files("tokensieve.train.fusion.presets")
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith("json"))


def make_recipe(preset: str, settings: Sequence[str] = ()) -> Recipe:
    """A preset with `section.field=value` settings on top.

    Raises `UnknownNameError` and `ConfigError` for a preset or a setting that does not exist or
    does not parse.
    """
    if preset not in preset_names():
        raise UnknownNameError.of("preset", preset, preset_names())
    text = resources.files("tokensieve.train.fusion.presets").joinpath(f"{preset}.json")
    base = json.loads(text.read_text("utf-8"))["settings"]
    printed = [f"{name}={json.dumps(value)}" for name, value in base.items()]
    values = parse_settings([*printed, *settings], SECTIONS)
    return Recipe(
        TrainConfig.from_dict(values["train"]),
        DataConfig.from_dict(values["data"]),
        LoraConfig.from_dict(values["lora"]),
        RunConfig.from_dict(values["run"]),
    )


def uses_bf16(recipe: Recipe) -> bool:
    """Whether the forward pass runs in bf16."""
    import torch

    wanted = recipe.train.precision
    if wanted == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return wanted == "bf16"
