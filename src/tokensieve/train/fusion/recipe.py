"""The recipe of a fusion projector's training: presets and settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokensieve.errors import ConfigError
from tokensieve.fields import option
from tokensieve.nn.config import Config
from tokensieve.train.fusion.budgets import SieveConfig
from tokensieve.train.settings import as_settings, names_of_presets, parse_settings, read_preset

PRESETS = "tokensieve.train.fusion.presets"
PARTS = ("projector", "llm", "lora")


@dataclass(frozen=True)
class TrainConfig(Config):
    """What learns, and the schedule: AdamW without weight decay, linear warm-up, cosine to zero."""

    parts: str = option(
        "llm",
        "What learns: projector, llm (projector and LLM), lora (projector, LoRA in the LLM).",
        choices=PARTS,
    )
    steps: int | None = option(
        None, "Optimiser steps. none: as many as `epochs` take.", low=1, high=10**9
    )
    epochs: float = option(1.0, "Passes over the rows, where `steps` is none.", over=0, high=10**6)
    batch: int = option(128, "Rows of an optimiser step, over all processes.", low=1, high=2**20)
    per_device: int = option(
        16, "Rows a process takes at once, at most; the rest in turns.", low=1, high=2**20
    )
    lr: float = option(2e-5, "Peak learning rate of the projector.", over=0)
    llm_lr: float | None = option(
        None, "Peak learning rate of the LLM. none: the projector's.", over=0
    )
    warmup: float = option(0.03, "Share of the steps spent warming up.", low=0, under=1)
    clip: float = option(1.0, "Largest gradient norm; 0: no clipping.", low=0)
    precision: str = option(
        "auto", "Mixed precision: bf16, no, or auto (bf16 where a GPU has it).",
        choices=("auto", "no", "bf16"),
    )  # fmt: skip
    checkpointing: bool = option(True, "Compute the LLM's activations again to save memory.")

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
class DataConfig(Config):
    """How rows become tokens."""

    form: str = option(
        "chat", "chat (the chat template) or plain (picture, caption, end).",
        choices=("chat", "plain"),
    )  # fmt: skip
    max_length: int = option(
        2048, "Tokens of a row, its picture's included; longer is a bad row.", low=1, high=2**24
    )
    end: str | None = option(
        None,
        "Text behind each answer. none: the template's own end of turn, else the end of sequence.",
    )
    order: str = option(
        "length", "length (rows of like length share a step) or random.",
        choices=("length", "random"),
    )  # fmt: skip


@dataclass(frozen=True)
class LoraConfig(Config):
    """LoRA in every linear layer of the LLM, where train.parts=lora."""

    rank: int = option(128, "Rank of the updates.", low=1, high=2**16)
    alpha: float = option(256.0, "Updates are scaled by alpha / rank.", over=0)
    dropout: float = option(0.05, "Dropout on what enters the updates.", low=0, under=1)


@dataclass(frozen=True)
class RunConfig(Config):
    """What is watched and written; nothing here changes what is learned."""

    log_every: int = option(10, "Steps between two lines of log.jsonl.", low=1, high=10**9)
    save_every: int = option(500, "Steps between two checkpoints.", low=1, high=10**9)
    workers: int = option(
        4, "Processes that read ahead for each that trains, no more than the machine has cores.",
        low=0, high=1024,
    )  # fmt: skip
    dtype: str = option(
        "auto", "Numbers of out/model: float32, bfloat16, float16; auto: bfloat16 after bf16.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip


SECTIONS: dict[str, type[Config]] = {
    "train": TrainConfig,
    "data": DataConfig,
    "lora": LoraConfig,
    "sieve": SieveConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class Recipe:
    """Everything a training depends on, apart from model, data and seed; and `run`."""

    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sieve: SieveConfig = field(default_factory=SieveConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what decides the result, ready for JSON."""
        wanted = ["train", "data", *(["lora"] if self.train.parts == "lora" else [])]
        wanted += ["sieve"] if self.sieve.method is not None else []
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
    return names_of_presets(PRESETS)


def make_recipe(preset: str, settings: Sequence[str] = ()) -> Recipe:
    """A preset with `section.field=value` settings on top.

    Raises `UnknownNameError` and `ConfigError` for a preset or a setting that does not exist or
    does not parse.
    """
    base = as_settings(read_preset(PRESETS, preset)["settings"])
    values = parse_settings([*base, *settings], SECTIONS)
    return Recipe(
        TrainConfig.from_dict(values["train"]),
        DataConfig.from_dict(values["data"]),
        LoraConfig.from_dict(values["lora"]),
        SieveConfig.from_dict(values["sieve"]),
        RunConfig.from_dict(values["run"]),
    )


def uses_bf16(recipe: Recipe) -> bool:
    """Whether the forward pass runs in bf16."""
    import torch

    wanted = recipe.train.precision
    if wanted == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return wanted == "bf16"
