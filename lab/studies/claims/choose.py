"""Which variant of a group read best on the split that choices are made on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.trained.spec import Training, variants
from tokensieve.evaluate import records

Record = dict[str, Any]


def found_in(folder: Path) -> dict[str, Record]:
    """Records by the name of their file: of trainings, that of their folder. None of no folder."""
    return {path.stem: records.read(path) for path in sorted(folder.glob("*.json"))}


def chosen(spec: Mapping[str, Any], found: Mapping[str, Record]) -> dict[str, str]:
    """The best variant of each group that another starts from, where all of it is measured."""
    out: dict[str, str] = {}
    for name in dict.fromkeys(one["from"] for one in spec["groups"].values() if "from" in one):
        ones = variants(spec, name, out)
        worth = {variant: worth_of(spec, of, found) for variant, of in ones.items()}
        if ones and None not in worth.values():
            out[name] = max(worth, key=lambda variant: worth[variant] or 0.0)
    return out


def worth_of(
    spec: Mapping[str, Any], ones: list[Training], found: Mapping[str, Record]
) -> float | None:
    """Mean exact match of the trainings over the kinds and keeps that choices go by; None where
    one is not measured. What diverged is worth nothing."""
    if any(one.folder not in found for one in ones):
        return None
    by = spec["choose"]
    return statistics.fmean(
        found[one.folder].get("scores", {}).get(kind, {}).get(f"{keep:g}", {}).get("mean", 0.0)
        for one in ones
        for kind in by["kinds"]
        for keep in by["keeps"]
    )
