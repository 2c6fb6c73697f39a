"""The smallest keep whose answers agree with those of all tokens, with a guarantee.

Learn then Test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: keeps are tried
from the largest on; each is tested for "more than `max_loss` of all such questions are answered
differently", by the exact binomial tail; the first that cannot be rejected ends it. So with
probability `confidence` over the questions drawn, the keep that is chosen loses no more than that.
It holds for questions drawn as those of the suite were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tokensieve.errors import ConfigError
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.cells import Cell, Tell, run_cells
from tokensieve.evaluate.prepare import prepared
from tokensieve.evaluate.questions import Questions
from tokensieve.evaluate.records import read
from tokensieve.hf.asked import Asked
from tokensieve.hf.calibrated import ALL, Calibration, Look, Tried, weights_of
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.models.loaded import Loaded

KEEPS = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
PICTURES = 1000  # at most so many are looked at, for how they look


@dataclass(frozen=True)
class Promise:
    """At most `max_loss` of such questions are answered otherwise, with that `confidence`.

    sure: an answer whose least likely token has a probability below it is asked again with all
    tokens, and so never differs; None: no answer is.
    """

    max_loss: float = 0.02
    confidence: float = 0.95
    keeps: tuple[float, ...] = KEEPS  # to try
    sure: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_loss", "confidence"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ConfigError(f"Expected {name} between 0 and 1. Got {value}.")
        if self.sure is not None and not 0 <= self.sure <= 1:
            raise ConfigError(f"Expected `sure` in [0, 1]. Got {self.sure}. Take 0.8.")
        if not self.keeps or not all(0 < keep < 1 for keep in self.keeps):
            raise ConfigError(f"Expected keeps as shares below 1. Got {list(self.keeps)}.")

    @property
    def fewest(self) -> int:
        """Questions below which even no difference at all would show nothing."""
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.max_loss))

    def chance(self, differed: int, asked: int) -> float:
        """Probability of at most `differed` of `asked` if `max_loss` of all differ."""
        p = self.max_loss
        terms = (
            math.exp(
                math.lgamma(asked + 1) - math.lgamma(k + 1) - math.lgamma(asked - k + 1)
                + k * math.log(p) + (asked - k) * math.log1p(-p)
            )
            for k in range(differed + 1)
        )  # fmt: skip
        return min(1.0, math.fsum(terms))

    def holds(self, differed: int, asked: int) -> bool:
        """Whether that few differences show it."""
        return self.chance(differed, asked) <= 1 - self.confidence


def certified(
    promise: Promise, counts: Iterable[tuple[float, int, int]]
) -> tuple[float, list[Tried]]:
    """The last keep before the first that does not hold, 1 where none does, and what was tried.

    counts: keep, questions asked and answers that differ, the largest keep first.
    """
    chosen, tried = 1.0, list[Tried]()
    for keep, asked, differed in counts:
        tried.append(Tried(keep, asked, differed, promise.chance(differed, asked)))
        if not promise.holds(differed, asked):
            break
        chosen = keep
    return chosen, tried


def calibrate(
    loaded: Loaded,
    questions: Questions,
    method: str,
    promise: Promise,
    settings: Settings,
    folder: Path,
    tell: Tell = lambda text: None,
) -> Calibration:
    """Ask until a keep does not hold, in every group; `folder` keeps what was answered.

    A group in which none holds is given keep 1, which changes nothing. Raises `ConfigError` for
    fewer questions than can show anything.
    """
    groups = _groups(questions, promise)
    (full,) = run_cells(loaded, questions, [Cell("full", 1.0)], settings, folder, tell)
    wanted = [row["answer"] for row in read(full)["rows"]]

    @cache
    def differ(keep: float) -> list[bool]:
        """Of each question, whether its answer differs."""
        (file,) = run_cells(loaded, questions, [Cell(method, keep)], settings, folder, tell)
        record = read(file)
        if record["refused"]:
            raise ConfigError(f"Expected a method that fits. Got: {record['refused']}")
        rows = zip(record["rows"], wanted, strict=True)
        bound = promise.sure or 0.0
        return [row["answer"] != one and row.get("sure", 1.0) >= bound for row, one in rows]

    chosen, tried = dict[str, float | int](), dict[str, tuple[Tried, ...]]()
    for group, own in groups.items():
        counts = (
            (keep, len(own), sum(differ(keep)[k] for k in own))
            for keep in sorted(set(promise.keeps), reverse=True)
        )
        chosen[group], told = certified(promise, counts)
        tried[group] = tuple(told)
    return Calibration(
        method, plan_told(method, settings), weights_of(loaded.model), promise.max_loss,
        promise.confidence, chosen, tried, look_of(loaded, questions), promise.sure,
    )  # fmt: skip


def _groups(questions: Questions, promise: Promise) -> dict[str, list[int]]:
    """Numbers of the questions of each group, all of them first; groups too small are left out."""
    items = questions.items
    if len(items) < promise.fewest:
        raise ConfigError(
            f"Expected {promise.fewest} questions or more, to show with confidence "
            f"{promise.confidence} that {promise.max_loss:.1%} or fewer differ. Got {len(items)}. "
            "Add questions, or allow more loss."
        )
    found: dict[str, list[int]] = {ALL: list(range(len(items)))}
    for number, item in enumerate(items):
        if item.group != ALL:
            found.setdefault(item.group, []).append(number)
    return {name: own for name, own in found.items() if len(own) >= promise.fewest}


def plan_told(method: str, settings: Settings) -> Mapping[str, str]:
    """What `Asked.told` says of the same settings."""
    own: dict[str, Any] = settings.plan(method)
    known = {field.name for field in fields(Asked)} - {"options"}
    front = {name: own.pop(name) for name in tuple(own) if name in known}
    own.pop("seed", None)
    return Asked(method, 1.0, **front, options=own).told


@torch.no_grad()
def look_of(loaded: Loaded, questions: Questions) -> Look:
    """How the pictures of a suite look to the model: each once, evenly over the suite."""
    step = math.ceil(len(questions.items) / PICTURES)
    means = []
    for question in questions.items[::step]:
        encoded = encode(loaded.model, prepared(loaded, question.open(), question.text))
        means += [rows.float().mean(0).cpu() for rows in encoded.images]
    return Look.of(torch.stack(means))
