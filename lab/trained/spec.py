"""What a file of trainings says: groups of variants, each a few settings on top of common ones.

One training and one evaluation command read it; two variants of equal settings are one training.
A group may name a `preset`, its own `seeds`, and in `from` another group: it then starts from the
settings of that group's best variant, which a measurement chose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokensieve.errors import ConfigError

DEFAULT = "default"
PRESET = "preset"  # among a variant's settings, the preset itself


@dataclass(frozen=True)
class Training:
    """One training: its settings, seed and preset, and a folder named by them."""

    settings: Mapping[str, Any]
    seed: int
    preset: str = DEFAULT

    @property
    def folder(self) -> str:
        """Equal for equal settings, seed and preset, whatever groups they stand in."""
        named = [] if self.preset == DEFAULT else [self.preset]
        text = json.dumps([sorted(self.settings.items()), self.seed, *named])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def texts(self) -> list[str]:
        """Settings as `section.field=value`."""
        return [f"{name}={json.dumps(value)}" for name, value in self.settings.items()]


def variants(
    spec: Mapping[str, Any], group: str, chosen: Mapping[str, str] | None = None
) -> dict[str, list[Training]]:
    """The trainings of each variant of a group, one per seed; none of a group that starts from
    one of which nothing is chosen yet.

    chosen: the best variant of each group of which one was chosen.

    Raises `ConfigError` for a spec without seeds or groups.
    """
    if not spec.get("seeds") or not spec.get("groups"):
        raise ConfigError("Expected `seeds` and `groups` in the ablation's file. Got neither.")
    one, shared = spec["groups"][group], _shared(spec, group, chosen or {})
    if shared is None:
        return {}
    shared = {PRESET: one.get(PRESET, DEFAULT), **spec.get("settings", {}), **shared}
    return {
        name: [_training({**shared, **own}, seed) for seed in one.get("seeds", spec["seeds"])]
        for name, own in one["variants"].items()
    }


def _shared(
    spec: Mapping[str, Any], group: str, chosen: Mapping[str, str]
) -> dict[str, Any] | None:
    """What all variants of a group set beside what all trainings do; None: not chosen yet."""
    one = spec["groups"][group]
    base, before = one.get("from"), {}
    if base is not None:
        above = _shared(spec, base, chosen)
        if above is None or base not in chosen:
            return None
        before = {**above, **spec["groups"][base]["variants"][chosen[base]]}
    return {**before, **one.get("settings", {})}


def _training(settings: dict[str, Any], seed: int) -> Training:
    preset = settings.pop(PRESET)
    return Training(settings, seed, preset)


def trainings(
    spec: Mapping[str, Any], chosen: Mapping[str, str] | None = None
) -> Iterator[Training]:
    """Every training of a spec, once each: all groups with the first seed before the second.

    Raises `ConfigError` for a spec without seeds or groups.
    """
    seen = set()
    groups = [list(variants(spec, group, chosen).values()) for group in spec.get("groups") or [""]]
    longest = max((len(ones) for group in groups for ones in group), default=0)
    for number in range(longest):
        for one in (ones[number] for group in groups for ones in group if number < len(ones)):
            if one.folder not in seen:
                seen.add(one.folder)
                yield one
