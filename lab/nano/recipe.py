"""All numbers of the recipe of the embedded model, in one place.

`lab/nano/recipe.json` lists them; a file like it, given by `--config`, overrides any;
`--steps-scale` shrinks every stage.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from tokensieve.errors import ConfigError


@dataclass(frozen=True)
class EncoderRecipe:
    """The CLIP encoder and its dense supervision; sizes in channels.

    `matrix_rate`: learning rate of the layers' matrices (Muon) as a multiple of `lr`."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 512
    steps: int = 3000
    batch: int = 24
    lr: float = 1e-3
    matrix_rate: float = 5.0
    warmup: int = 100
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "char": 1.0,
            "index": 0.5,
            "key1": 0.5,
            "key2": 0.5,
            "ink": 0.5,
            "colour": 0.3,
            "shape": 0.6,
            "ordinal": 0.3,
            "place": 0.1,
            "background": 0.2,
            "pixels": 0.3,
            "rms": 1.0,
        }
    )
    blank_weight: float = 0.3
    document_weight: float = 0.5


@dataclass(frozen=True)
class LmRecipe:
    """Projector and Llama. A phase is (steps, visual tokens shown, pictures a step);
    `questions` at most are asked of a picture in one step. In the control's first phase the loss
    on where `guide_layer` looks weighs `guide`, falling to 0."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 352
    lr: float = 1.3e-3
    matrix_rate: float = 1.5
    warmup: int = 100
    key_weight: float = 0.3
    questions: int = 12
    renumber: float = 0.5
    guide: float = 0.5
    guide_layer: int = 2
    phases: tuple[tuple[int, int, int], ...] = ((600, 24, 32), (400, 72, 16), (1400, 256, 12))
    control_phases: tuple[tuple[int, int, int], ...] = ((600, 256, 12), (1200, 256, 12))

    def __post_init__(self) -> None:
        if not 0 <= self.guide_layer < self.layers:
            raise ConfigError(
                f"Expected `guide_layer` among the {self.layers} layers, from 0 on. Got "
                f"{self.guide_layer}."
            )


@dataclass(frozen=True)
class Recipe:
    """The whole recipe: pool sizes, both trained stages, seed and processes."""

    shard: int = 500
    train_shards: int = 36
    val_shards: int = 1
    seed: int = 0
    workers: int = 2
    checkpoint_every: int = 250
    encoder: EncoderRecipe = field(default_factory=EncoderRecipe)
    lm: LmRecipe = field(default_factory=LmRecipe)

    @classmethod
    def load(cls, path: Path | None) -> Recipe:
        """The defaults, overridden by the JSON file at `path`.

        Raises:
            ConfigError: the file names a field that does not exist.
        """
        if path is None:
            return cls()
        given = json.loads(path.read_text())
        for name in ("phases", "control_phases"):
            if name in given.get("lm", {}):
                given["lm"][name] = tuple(tuple(phase) for phase in given["lm"][name])
        parts = {"encoder": EncoderRecipe, "lm": LmRecipe}
        known = {f.name for f in fields(cls)}
        for name, part in parts.items():
            allowed = {f.name for f in fields(part)}
            if unknown := sorted(set(given.get(name, {})) - allowed):
                raise ConfigError(f"Expected {name} fields among {sorted(allowed)}. Got {unknown}.")
            given[name] = part(**given.get(name, {}))
        if unknown := sorted(set(given) - known):
            raise ConfigError(f"Expected fields among {sorted(known)}. Got {unknown}.")
        return cls(**given)
