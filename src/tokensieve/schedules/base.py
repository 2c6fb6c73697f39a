"""How many visual tokens each layer of an LLM holds: shares by layer, never growing.

A schedule is written as {layer: keep}: from that decoder layer on, so much of a picture remains.
The first layer (0) holds what it is given, so layers run from 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from tokensieve.budget import check_keep
from tokensieve.errors import BudgetError, ConfigError
from tokensieve.fields import check_fields, option, shown
from tokensieve.functional.blocks import blocks_run
from tokensieve.types import EncoderInfo

Stages = Mapping[int, float | int]


def scaled_layers(depth: int, places: Sequence[float]) -> tuple[int, ...]:
    """Layers of an LLM of `depth` layers at `places`, shares of its depth in ascending order, by
    the rule of `blocks_run`.

    From 1 to depth - 1, and distinct as far as there are layers.

    Raises `ConfigError` for an LLM of one layer.
    """
    if depth < 2:
        raise ConfigError(f"Expected an LLM of two layers or more. Got {depth}. Use another model.")
    found: list[int] = []
    for i, place in enumerate(places):
        behind = len(places) - 1 - i  # so many more have to find room
        low = found[-1] + 1 if found else 1
        high = max(low, depth - 1 - behind)
        found.append(min(max(blocks_run(place, depth), low), high))
    return tuple(dict.fromkeys(layer for layer in found if layer < depth))


def geometric(depth: int, places: Sequence[float], keep: float | int) -> dict[int, float | int]:
    """The same share of the survivors at each of `places`; `keep` is what remains after the last.

    With a whole number the share of each stage depends on the picture, which is not known here:
    raises `BudgetError` for it where there are several places.
    """
    layers = scaled_layers(depth, places)
    if isinstance(keep, int) and len(layers) > 1:
        raise _steps_error(len(layers), keep)
    if len(layers) == 1:
        return {layers[0]: keep}
    return {at: keep ** ((i + 1) / len(layers)) for i, at in enumerate(layers)}


def linear(depth: int, first: float, last: float, keep: float | int) -> dict[int, float | int]:
    """A share that falls by equal steps, one a layer, from all to `keep` between two parts of the
    depth. Raises `BudgetError` as `geometric` does."""
    ends = scaled_layers(depth, (first, last))
    layers = range(ends[0], ends[-1] + 1)
    if isinstance(keep, int) and len(layers) > 1:
        raise _steps_error(len(layers), keep)
    if len(layers) == 1:
        return {layers[0]: keep}
    return {at: 1 - (1 - keep) * (i + 1) / len(layers) for i, at in enumerate(layers)}


def _steps_error(steps: int, keep: int) -> BudgetError:
    return BudgetError(
        f"Expected `keep` as a fraction, to be reached in {steps} steps. Got {keep}. Pass a "
        "fraction, or say the count at every layer: layer={layer: count, ...}."
    )


def check_schedule(stages: Stages, depth: int) -> None:
    """Raise `ConfigError` for a schedule that is empty, grows, names a layer there is not, or mixes
    shares with counts, of which none can say whether it grows."""
    if not stages:
        raise ConfigError("Expected at least one layer of the LLM. Got none.")
    for at, share in stages.items():
        if isinstance(at, bool) or not isinstance(at, int) or not 0 < at < depth:
            raise ConfigError(
                f"Expected `layer` from 1 to {depth - 1}, a decoder layer of the LLM behind its "
                f"first. Got {shown(at)}."
            )
        check_keep(share)
    for more, fewer in pairwise(stages[at] for at in sorted(stages)):
        check_shrinks(more, fewer, "at a later layer")


def check_shrinks(more: float | int, fewer: float | int, where: str) -> None:
    """Raise `ConfigError` where `fewer` is more than `more`, or only one of them is a count."""
    if isinstance(more, int) != isinstance(fewer, int) and 1 not in (more, fewer):
        raise ConfigError(
            f"Expected shares or counts of tokens, not both. Got {more} and then {fewer}. Give "
            "both as shares, or both as counts."
        )
    if isinstance(more, int) == isinstance(fewer, int) and fewer > more:
        raise ConfigError(f"Expected no more tokens {where}. Got {more} and then {fewer}.")


class Schedule(ABC):
    """What `layer=` of a sieve takes beside numbers: it says where and how much, for any LLM."""

    budgeted: ClassVar[bool] = True  # False: says how much by itself, whatever `keep`

    @abstractmethod
    def stages(self, llm: EncoderInfo, keep: float | int) -> dict[int, float | int]:
        """{layer: keep} for an LLM of `llm.depth` layers. `keep` is what the sieve was given."""


@dataclass(frozen=True)
class Stepwise(Schedule):
    """Shares that hold from a part of the depth on: {0.25: 0.5, 0.5: 0.25} keeps half of the
    tokens from a quarter of the depth on, and a quarter of them from the middle on.

    The sieve's `keep` is not used. Raises `ConfigError` for places outside (0, 1) and for shares
    that grow.
    """

    budgeted: ClassVar[bool] = False

    steps: Mapping[float, float]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.steps or not all(0 < place < 1 for place in self.steps):
            raise ConfigError(
                "Expected steps as {part of the depth: keep}, parts between 0 and 1. Got "
                f"{dict(self.steps)}."
            )
        check_schedule({i + 1: self.steps[p] for i, p in enumerate(sorted(self.steps))}, 10**6)

    def stages(self, llm: EncoderInfo, keep: float | int) -> dict[int, float | int]:
        places = sorted(self.steps)
        layers = scaled_layers(llm.depth, places)
        if len(layers) < len(places):
            raise ConfigError(
                f"Expected at most {llm.depth - 1} steps, for an LLM of {llm.depth} layers. Got "
                f"{len(places)}."
            )
        return {at: self.steps[place] for at, place in zip(layers, places, strict=True)}


@dataclass(frozen=True)
class PSigmoid(Schedule):
    """Shares that fall along a sigmoid over the depth; their mean over all layers is `keep` [1].

    The share of layer l is 1 / (1 + exp(steepness * (l / depth - centre))), the centre chosen so
    that the mean is right; layer 0 holds everything. steepness: 0 falls at once to an even share,
    large ones keep all and then next to nothing.

    Differs from the paper: there a Bayesian search fits both numbers; here one is an option, which
    `tokensieve.hf.search.fit_p_sigmoid` fits so, and the other follows from the budget. Raises
    `BudgetError` for a `keep` below what layer 0 holds.

    [1] Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction,
    arXiv 2412.00556.
    """

    steepness: float = option(12.0, low=0, high=500)

    def __post_init__(self) -> None:
        check_fields(self)

    def stages(self, llm: EncoderInfo, keep: float | int) -> dict[int, float | int]:
        share, depth = mean_share(keep), llm.depth
        if share == 1:
            return dict.fromkeys(range(1, depth), 1.0)
        wanted = share * depth - 1  # layer 0 takes one
        if wanted <= 1e-6 * depth:
            raise BudgetError(
                f"Expected `keep` above {1 / depth:g}: the first of {depth} layers holds all. Got "
                f"{keep}. Keep more, or drop tokens before the LLM."
            )
        low, high = -1e3, 1e3  # of the logit's offset
        for _ in range(200):
            middle = (low + high) / 2
            enough = sum(self._shares(middle, depth)) >= wanted
            low, high = (low, middle) if enough else (middle, high)
        return dict(enumerate(self._shares(high, depth), 1))

    def _shares(self, offset: float, depth: int) -> list[float]:
        return [_sigmoid(offset - self.steepness * layer / depth) for layer in range(1, depth)]


def _sigmoid(x: float) -> float:
    """Never quite 0: a share of nothing is no share."""
    return max(1 / (1 + math.exp(-x)) if x > -700 else 0.0, 1e-12)


def mean_share(keep: float | int) -> float:
    """`keep` as a mean over layers. Raises `BudgetError` for a count."""
    checked = check_keep(keep)
    if isinstance(checked, int):
        raise BudgetError(
            "Expected `keep` as a fraction, the mean over the LLM's layers. Got "
            f"{keep}. Pass a fraction, or layer={{layer: count, ...}}."
        )
    return checked
