"""The records of a suite as one board: scores by model, variant, kind, topic and keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokensieve.evaluate.records import Record, read_all
from tokensieve.evaluate.stats import Estimate, Hits, Scores, bootstrap_mean, seed_mean, unpack_hits

MEAN = "mean"  # topic of a kind with several: the mean over its topics, picture by picture


@dataclass(frozen=True, order=True)
class Place:
    """Where a score stands on the board."""

    model: str
    variant: str
    kind: str
    topic: str
    keep: float


@dataclass
class Cell:
    """All seeds of one place: hits by seed, and the rows they came from."""

    hits: dict[int, Hits] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def estimate(self) -> Estimate:
        """Exact match, seeds averaged per picture, interval over pictures."""
        return bootstrap_mean(seed_mean(list(self.hits.values())))

    def spread(self) -> tuple[float, float]:
        """Lowest and highest seed."""
        means = [float(h.mean()) for h in self.hits.values()]
        return min(means), max(means)

    def average(self, key: str) -> float:
        """Mean over seeds of a number kept in the rows, such as "kept_tokens"."""
        return float(np.mean([row[key] for row in self.rows]))


class Board:
    """Every score of a suite."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._cells: dict[Place, Cell] = defaultdict(Cell)
        self._identity: set[tuple[str, str, str]] = set()  # (model, variant, kind)
        self.records = list(records)
        for record in self.records:
            config = record["config"]
            if record.get("identity_at_1"):
                self._identity.add((config["model"], config["variant"], config["kind"]))
            for row in record["rows"]:
                place = Place(
                    config["model"],
                    config["variant"],
                    config["kind"],
                    row["topic"],
                    float(row["keep"]),
                )
                cell = self._cells[place]
                cell.hits[config["seed"]] = unpack_hits(row["hits"], row["n"])
                cell.rows.append(row)

    @classmethod
    def of(cls, folder: Path) -> Board:
        """The board of a results folder; records of other forms (timing) are left out."""
        return cls(r for r in read_all(folder) if r.get("form") == "scores")

    def hits(self, place: Place) -> Sequence[Scores]:
        """Per-picture scores of every seed; empty where not run.

        For the topic "mean": the mean of the kind's topics. At keep 1 a variant takes those of
        "full" where its record found that it hands the LLM the very same, bit for bit.
        """
        if place.keep == 1 and (place.model, place.variant, place.kind) in self._identity:
            place = replace(place, variant="full")
        if place.topic != MEAN:
            return list(self._cells[place].hits.values()) if place in self._cells else []
        topics = self.topics(place.kind)
        parts = [self.hits(replace(place, topic=topic)) for topic in topics]
        if not parts or not all(parts):
            return []
        return [np.mean([p[s] for p in parts], axis=0) for s in range(len(parts[0]))]

    def estimate(self, place: Place) -> Estimate | None:
        """Exact match with its interval over pictures; None where not run."""
        hits = self.hits(place)
        return bootstrap_mean(seed_mean(hits)) if hits else None

    def overall(self, model: str, variant: str, keep: float, kinds: Iterable[str]) -> float | None:
        """Share right, the mean of `kinds`, each the mean of its topics; None where one lacks."""
        means = []
        for kind in kinds:
            places = [Place(model, variant, kind, topic, keep) for topic in self.topics(kind)]
            found = [self.hits(place) for place in places]
            if not found or not all(found):
                return None
            means.append(np.mean([np.mean([hits.mean() for hits in seeds]) for seeds in found]))
        return float(np.mean(means))

    def cell(self, place: Place) -> Cell | None:
        """What was recorded at a place; None where not run."""
        return self._cells.get(place)

    def topics(self, kind: str) -> list[str]:
        """Topics asked on a kind, text first."""
        return sorted({p.topic for p in self._cells if p.kind == kind}, reverse=True)

    def panels(self, kinds: Iterable[str]) -> list[tuple[str, str]]:
        """(kind, topic) of every table: each topic, and the mean where there are several."""
        out: list[tuple[str, str]] = []
        for kind in kinds:
            topics = self.topics(kind) or ["text"]
            out += [(kind, topic) for topic in topics]
            out += [(kind, MEAN)] if len(topics) > 1 else []
        return out
