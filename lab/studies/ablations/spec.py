"""What an ablation's file says: groups of variants, each a few settings on top of common ones.

One training and one evaluation command read it; two variants of equal settings are one training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokensieve.errors import ConfigError


@dataclass(frozen=True)
class Training:
    """One training of an ablation: its settings, its seed, and a folder named by both."""

    settings: Mapping[str, Any]
    seed: int

    @property
    def folder(self) -> str:
        """Equal for equal settings and seed, whatever groups they stand in."""
        text = json.dumps([sorted(self.settings.items()), self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def texts(self) -> list[str]:
        """Settings as `section.field=value`."""
        return [f"{name}={json.dumps(value)}" for name, value in self.settings.items()]


def variants(spec: Mapping[str, Any], group: str) -> dict[str, list[Training]]:
    """The trainings of each variant of a group, one per seed.

    Raises `ConfigError` for a spec without seeds or groups.
    """
    if not spec.get("seeds") or not spec.get("groups"):
        raise ConfigError("Expected `seeds` and `groups` in the ablation's file. Got neither.")
    chosen = spec["groups"][group]
    common = {**spec.get("settings", {}), **chosen.get("settings", {})}
    return {
        name: [Training({**common, **own}, seed) for seed in spec["seeds"]]
        for name, own in chosen["variants"].items()
    }


def trainings(spec: Mapping[str, Any]) -> Iterator[Training]:
    """Every training of a spec, once each, all groups with the first seed before the second.

    Raises `ConfigError` for a spec without seeds or groups.
    """
    seen = set()
    for number, _ in enumerate(spec.get("seeds") or [0]):
        for group in spec.get("groups") or [""]:
            for of_variant in variants(spec, group).values():
                one = of_variant[number]
                if one.folder not in seen:
                    seen.add(one.folder)
                    yield one
