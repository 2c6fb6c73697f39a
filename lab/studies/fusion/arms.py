"""The arms of the comparison, and what they share, read from `lab/studies/fusion/arms.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lab.nano.packing import PATCHES
from lab.nano.recipe import LmRecipe
from tokensieve.data.synth import GRID
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.nn.fusion import FusionConfig

KEEPERS = ("selector", "random")


@dataclass(frozen=True)
class Arm:
    """One way of handing the LLM visual tokens.

    projector: fields of `FusionConfig`. keeper: in training, `kept` of the 256 tokens of a picture
    are kept, by the selector or at random. seeds, steps: None, those of the study.
    """

    name: str
    projector: dict[str, Any] = field(default_factory=dict)
    keeper: str | None = None
    kept: int = PATCHES
    seeds: tuple[int, ...] | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.keeper is not None and self.keeper not in KEEPERS:
            raise UnknownNameError.of("keeper", self.keeper, KEEPERS)
        if self.keeper is not None and self.config(1, 1).kernel != 1:
            raise ConfigError(f"Expected kernel 1 where tokens are kept one by one: {self.name}.")

    def config(self, width: int, out_width: int) -> FusionConfig:
        """The projector, for an encoder and an LLM of these widths."""
        sizes = {"width": width, "out_width": out_width, "rows": GRID, "columns": GRID}
        return FusionConfig.from_dict({**sizes, **self.projector})

    @property
    def tokens(self) -> int:
        """Visual tokens the LLM has of a picture in training."""
        return self.kept if self.keeper else self.config(1024, 1).tokens


@dataclass(frozen=True)
class Study:
    """All arms, and what they share.

    The LLM is that of nano's control, which never saw fewer tokens than all. In the first `align`
    of `steps` the projector alone is trained, then both, as published.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1200
    align: int = 200
    batch: int = 12
    train_shards: int = 24
    selector: str = "lab/nano/weights/selector-features"
    lm: LmRecipe = field(default_factory=LmRecipe)

    @classmethod
    def load(cls, path: Path, **overrides: Any) -> Study:
        """Read it from JSON; `overrides` that are not None replace its fields.

        Raises `ConfigError` for a missing file, bad JSON, or a field that does not exist.
        """
        try:
            raw = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as problem:
            raise ConfigError(f"Expected a study as JSON in {path}. Got: {problem}.") from None
        raw |= {name: value for name, value in overrides.items() if value is not None}
        known = {f.name for f in fields(cls)} - {"lm"}
        for name in raw:
            if name not in known:
                raise UnknownNameError.of("study field", name, known)
        if not raw.get("arms") or not all("name" in arm for arm in raw["arms"]):
            raise ConfigError(f"Expected `arms`, each with a name, in {path}.")
        raw["arms"] = tuple(_arm(arm) for arm in raw["arms"])
        if "seeds" in raw:
            raw["seeds"] = tuple(raw["seeds"])
        return cls(**raw)

    def arm(self, name: str) -> Arm:
        """An arm by name. Raises `UnknownNameError`, which lists them."""
        found = {arm.name: arm for arm in self.arms}
        if name not in found:
            raise UnknownNameError.of("arm", name, found)
        return found[name]

    def runs(self) -> list[tuple[Arm, int]]:
        """Every training: all arms at their first seed, then at their second, and so on."""
        seeds = {arm.name: arm.seeds or self.seeds for arm in self.arms}
        most = max(map(len, seeds.values()))
        return [
            (arm, seeds[arm.name][number])
            for number in range(most)
            for arm in self.arms
            if number < len(seeds[arm.name])
        ]


def _arm(raw: dict[str, Any]) -> Arm:
    known = {f.name for f in fields(Arm)}
    for name in raw:
        if name not in known:
            raise UnknownNameError.of("arm field", name, known)
    seeds = raw.get("seeds")
    return Arm(**{**raw, "seeds": None if seeds is None else tuple(seeds)})
