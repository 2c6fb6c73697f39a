"""The recipe of a selector's training: presets, settings, and the schedule they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokensieve.errors import ConfigError
from tokensieve.fields import option, read_object, shown
from tokensieve.nn.config import (
    Config,
    ObjectiveConfig,
    ReconstructorConfig,
    SelectorConfig,
    TrainedBy,
)
from tokensieve.train.settings import as_settings, names_of_presets, parse_settings, read_preset
from tokensieve.types import EncoderInfo

PRESETS = "tokensieve.train.selector.presets"
MOST_STAGES = 100
REFERENCE_WIDTH = 128  # where the default learning rate was found; Adam's falls as 1 / width


@dataclass(frozen=True)
class TrainConfig(Config):
    """The schedule: Adam, linear warm-up, cosine to zero, again in each stage."""

    steps: int | None = option(
        900, "Optimiser steps. none: as many as `epochs` take.", low=1, high=10**9
    )
    epochs: float | None = option(
        None, "Passes over the features, where `steps` is none.", over=0, high=10**6
    )
    stages: str = option("1", "Shares of the steps, such as 60+20+20; each has its own cosine.")
    batch: int = option(16, "Crops of an optimiser step, over all processes.", low=1, high=2**20)
    accumulate: int = option(
        1, "Parts of a process's share of the batch, one after another.", low=1, high=2**20
    )
    precision: str = option("no", "Mixed precision: no or bf16.", choices=("no", "bf16"))
    lr: float | None = option(
        None, "Peak learning rate. none: 1e-3 x 128 / width of the encoder.", over=0
    )
    warmup: float = option(0.05, "Share of each stage's steps spent warming up.", low=0, under=1)
    clip: float = option(1.0, "Largest gradient norm; 0: no clipping.", low=0)
    normaliser_crops: int = option(
        1024, "Crops from which mean and std are measured.", low=1, high=2**20
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is None and self.epochs is None:
            raise ConfigError("Expected `steps` or `epochs`. Got neither. Set one.")
        self.stage_ends()

    def resolved(self, crops: int, encoder: EncoderInfo) -> TrainConfig:
        """The same with `steps` and `lr` as numbers, for a set of `crops`."""
        steps, lr = self.steps, self.lr
        if steps is None:
            steps = max(1, math.ceil((self.epochs or 0) * crops / self.batch))
        if lr is None:
            lr = 1e-3 * REFERENCE_WIDTH / encoder.width
        return replace(self, steps=steps, epochs=None, lr=lr)

    def stage_ends(self) -> list[int]:
        """The step after each stage's last. Raises `ConfigError` for shares that are none."""
        try:
            shares = [float(part) for part in self.stages.split("+")]
        except ValueError:
            shares = []
        right = shares and all(0 < share < math.inf for share in shares)
        if not right or len(shares) > MOST_STAGES or not math.isfinite(sum(shares)):
            raise ConfigError(
                f"Expected `stages` such as 60+20+20, at most {MOST_STAGES}. Got "
                f"{shown(self.stages)}."
            )
        total, done, ends = self.steps or 0, 0.0, []
        for share in shares:
            done += share
            ends.append(round(total * done / sum(shares)))
        return ends

    def rate(self, step: int) -> float:
        """Learning rate of a step, of a schedule that is `resolved`."""
        first = 0
        for end in self.stage_ends():
            if step < end:
                break
            first = end
        length, at, peak = end - first, step - first, self.lr or 0.0
        warm = max(1, round(self.warmup * length))
        if at < warm:
            return peak * (at + 1) / warm
        return peak * 0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, length - warm)))


@dataclass(frozen=True)
class RunConfig(Config):
    """What is watched and written; nothing here changes what is learned."""

    log_every: int = option(20, "Steps between two lines of log.jsonl.", low=1, high=10**9)
    save_every: int = option(100, "Steps between two checkpoints.", low=1, high=10**9)
    validate_every: int = option(300, "Steps between two validations.", low=1, high=10**9)
    validation_crops: int = option(256, "Crops a validation looks at.", low=1, high=10**9)
    patience: int = option(
        50, "Steps a mask may be all ones or all zeros before it is an error.", low=1, high=10**9
    )
    on_collapse: str = option(
        "raise", "raise, or log (ablations show the collapse).", choices=("raise", "log")
    )


SECTIONS: dict[str, type[Config]] = {
    "selector": SelectorConfig,
    "reconstructor": ReconstructorConfig,
    "objective": ObjectiveConfig,
    "train": TrainConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class Recipe:
    """Everything a training depends on, apart from its features and seed; and `run`.

    mix: relative weight of each source of the features; None: every crop alike.
    preset, changed: the preset it began with and the settings on top, as the weights will say.
    """

    selector: SelectorConfig
    reconstructor: ReconstructorConfig
    objective: ObjectiveConfig
    train: TrainConfig
    run: RunConfig = field(default_factory=RunConfig)
    mix: Mapping[str, int | float] | None = None
    preset: str = ""
    changed: tuple[str, ...] = ()

    def trained_by(self, crops: int, seed: int) -> TrainedBy:
        """What weights trained by it, on so many crops, say of themselves."""
        o, told = self.objective, tuple(c for c in self.changed if not c.startswith("run."))
        steps = self.train.steps
        return TrainedBy(o.objective, o.estimator, self.preset, told, steps, crops, seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what decides the result, ready for JSON."""
        sections = {name: getattr(self, name).to_dict() for name in SECTIONS if name != "run"}
        del sections["train"]["accumulate"]  # where the parts of a batch ran, decides nothing
        return {**sections, "mix": None if self.mix is None else dict(self.mix)}


@dataclass(frozen=True)
class Preset:
    """A named recipe: what it is, its settings by name, learning rates by family, and its mix."""

    about: str
    settings: dict[str, Any]
    lr: Mapping[str, int | float] = field(default_factory=dict)
    mix: Mapping[str, int | float] | None = None


def preset_names() -> list[str]:
    """Names `--preset` takes."""
    return names_of_presets(PRESETS)


def load_preset(name: str) -> Preset:
    """A preset that comes with the package. Raises `UnknownNameError`."""
    return Preset(**read_preset(PRESETS, name))


def read_settings(path: str | Path) -> list[str]:
    """`section.field=value` settings of a JSON file. Raises `ConfigError` if it is none."""
    values = read_object(path, "settings")
    if any(isinstance(value, dict | list) for value in values.values()):
        raise ConfigError(
            f'Expected {{"section.field": value, ...}} in {path}. Got other JSON. See '
            "--list-settings."
        )
    return as_settings(values)


def make_recipe(
    encoder: EncoderInfo,
    preset: str = "default",
    settings: Sequence[str] = (),
    mix: Mapping[str, int | float] | None = None,
    sources: Sequence[str] = (),
) -> Recipe:
    """A preset for an encoder, with `section.field=value` settings on top.

    mix: weight by source; None: the preset's, if all of its sources are among `sources`.

    Where the grid varies with the picture, a preset's learned positions become sines and cosines
    and its image reconstructor is left out: neither can be had there.

    Raises `UnknownNameError` and `ConfigError` for a preset or a setting that does not exist or
    does not parse.
    """
    base = load_preset(preset)
    lr = base.lr.get(encoder.model_type, base.lr.get("default"))
    printed = as_settings(base.settings)
    if lr is not None:
        printed.append(f"train.lr={lr}")
    if encoder.grid is None:
        printed += ["reconstructor.positions=sincos", "reconstructor.image_depth=0"]
    values = parse_settings([*printed, *settings], SECTIONS)
    if values["train"].get("epochs") is not None and "steps" not in values["train"]:
        values["train"]["steps"] = None
    shared = {"encoder": encoder}
    return Recipe(
        SelectorConfig.from_dict({**shared, **values["selector"]}),
        ReconstructorConfig.from_dict({**shared, **values["reconstructor"]}),
        ObjectiveConfig.from_dict(values["objective"]),
        TrainConfig.from_dict(values["train"]),
        RunConfig.from_dict(values["run"]),
        mix or (base.mix if set(base.mix or ()) <= set(sources) else None),
        preset,
        tuple(settings),
    )
