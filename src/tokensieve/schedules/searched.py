"""Shares by layer found by a search, and their file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokensieve.errors import BudgetError, ConfigError, EncoderMismatchError, WeightsError
from tokensieve.fields import check_fields, read_object, shown
from tokensieve.files import write_text
from tokensieve.schedules.base import Schedule, check_schedule, mean_share
from tokensieve.types import EncoderInfo

_FORMAT = 1
_IDENTITY = ("model_type", "width", "depth", "heads", "ffn")  # what a search is good for
_LEVELS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)


@dataclass(frozen=True)
class Searched(Schedule):
    """Shares by layer found by a search on one LLM; see `greedy_search` [1].

    llm: the LLM's fingerprint. trace: the schedules the search went through, each the shares of
    all layers, from all tokens down. Of these, the one with the largest mean of at most `keep` is
    taken, so one search serves many budgets.

    Raises `EncoderMismatchError` for another LLM, `BudgetError` for a `keep` below the search's
    end, `ConfigError` for shares that grow or do not fit the depth.

    [1] G-Search of arXiv 2412.00556.
    """

    llm: EncoderInfo
    trace: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.trace:
            raise ConfigError("Expected a searched schedule with at least one entry. Got none.")
        for shares in self.trace:
            if len(shares) != self.llm.depth:
                raise ConfigError(
                    f"Expected a share for each of {self.llm.depth} layers. Got {len(shares)}."
                )
            if shares[0] != 1:
                raise ConfigError(f"Expected all tokens in the first layer. Got {shares[0]}.")
            check_schedule(dict(enumerate(shares[1:], 1)), self.llm.depth)

    def stages(self, llm: EncoderInfo, keep: float | int) -> dict[int, float | int]:
        for field in _IDENTITY:
            if (want := getattr(self.llm, field)) != (got := getattr(llm, field)):
                raise EncoderMismatchError(
                    f"This schedule was searched on an LLM with {field}={want}. Got {field}={got}. "
                    "Search one for this LLM (tokensieve.hf.search)."
                )
        share = mean_share(keep)
        fitting = [shares for shares in self.trace if _mean(shares) <= share + 1e-9]
        if not fitting:
            lowest = min(map(_mean, self.trace))
            raise BudgetError(
                f"Expected `keep` of at least {lowest:.3f}, where the search ended. Got {keep}. "
                "Search further, or keep more."
            )
        return steps_of(max(fitting, key=_mean))

    def save(self, path: str | Path) -> None:
        """Write it as JSON, with the LLM it is for."""
        llm = {field: getattr(self.llm, field) for field in _IDENTITY}
        data = {"format": _FORMAT, "llm": llm, "trace": self.trace}
        write_text(path, json.dumps(data) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Searched:
        """Read what `save` wrote. Raises `WeightsError` for a file that is none of it."""
        advice = "Make one with tokensieve.hf.search."
        data = read_object(path, "a searched schedule", WeightsError, advice)
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format {shown(data['format'])}")
            given = {field: data["llm"][field] for field in _IDENTITY}
            llm = EncoderInfo(**given, layer=-1)
            trace = tuple(tuple(float(share) for share in shares) for shares in data["trace"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            said = " ".join(str(error).split())[:200]
            raise WeightsError(
                f"Expected a searched schedule at '{path}'. Got something else ({said}). {advice}"
            ) from error
        return cls(llm, trace)


def steps_of(shares: Sequence[float]) -> dict[int, float | int]:
    """Shares of all layers as {layer: keep} where they fall; {1: 1.0} where they never do."""
    falls = {
        at: shares[at] for at in range(1, len(shares)) if shares[at] < shares[at - 1]
    }  # fmt: skip
    return dict(falls) if falls else {1: 1.0}


def greedy_search(
    score: Callable[[tuple[float, ...]], float],
    depth: int,
    keep: float,
    *,
    levels: Sequence[float] = _LEVELS,
    layers: Sequence[int] | None = None,
) -> tuple[tuple[float, ...], ...]:
    """Lower shares layer by layer until their mean is at most `keep`; every schedule on the way.

    score: how good a schedule is, the shares of all `depth` layers; higher is better. It is asked
        at most (layers * steps) times.
    levels: shares a layer may take, 1 first and falling. layers: where steps may stand; None: at
        every layer from 1.

    Each step tries to lower, at one of `layers`, this layer and all behind it that hold as much to
    the next level, and takes what costs least score per token saved (the later layer on a tie).

    Differs from G-Search, which goes from shallow to deep and stops at a given loss of quality
    (`g_search`): here every layer may be next, and the budget ends the search.

    Raises `ConfigError` for levels that grow or layers there are not, `BudgetError` for a `keep`
    that the levels cannot reach.
    """
    share, asked = mean_share(keep), _finite(score)
    places = _places(layers, levels, depth)
    state: tuple[float, ...] = (1.0,) * depth
    trace, quality = [state], asked(state)
    while _mean(state) > share + 1e-9:
        found = [(tried, asked(tried)) for tried in _lowered(state, places, levels)]
        if not found:
            raise BudgetError(
                f"Expected `keep` of at least {_mean(state):.3f}, the least these levels and "
                f"layers allow. Got {keep}. Add lower levels or earlier layers."
            )
        prices = [(quality - got) / (sum(state) - sum(tried)) for tried, got in found]
        state, quality = found[prices.index(min(prices))]  # the first, so the latest layer
        trace.append(state)
    return tuple(trace)


def g_search(
    score: Callable[[tuple[float, ...]], float],
    depth: int,
    loss: float,
    *,
    levels: Sequence[float] = _LEVELS,
    layers: Sequence[int] | None = None,
) -> tuple[tuple[float, ...], ...]:
    """The least share at each layer, from the shallow to the deep, that loses at most `loss` [1].

    At one layer after another, this layer and all behind it are lowered level by level as long as
    the score stays within `loss` of that of all tokens; the first level that does not ends the
    layer. Every schedule on the way is given, all tokens first; the last is the result. Arguments
    as of `greedy_search`; `score` is asked at most (layers + levels) times.

    The paper was read by its abstract: levels, and what a score is, are choices made here.

    Raises `ConfigError` for a negative `loss`, levels that grow or layers there are not.

    [1] Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction,
    arXiv 2412.00556.
    """
    asked = _finite(score)
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss < math.inf:
        raise ConfigError(
            f"Expected `loss` as a number from 0. Got {shown(loss)}. Pass what may be lost, 0.01 "
            "of the score, say."
        )
    places = _places(layers, levels, depth)
    state: tuple[float, ...] = (1.0,) * depth
    trace, least = [state], asked(state) - loss
    for at in sorted(places):
        while (tried := next(_lowered(state, (at,), levels), None)) is not None:
            if asked(tried) < least:
                break
            state = tried
            trace.append(state)
    return tuple(trace)


def _places(layers: Sequence[int] | None, levels: Sequence[float], depth: int) -> tuple[int, ...]:
    """Layers where steps may stand. Raises `ConfigError` for those, or levels, that are none."""
    if layers is not None and not isinstance(layers, Sequence):
        raise ConfigError(
            f"Expected `layers` as a list of layers. Got {shown(layers)}. Pass (1, 4, 8), say."
        )
    places = tuple(range(1, depth)) if layers is None else tuple(layers)
    if not _are_levels(levels):
        raise ConfigError(
            f"Expected falling levels from 1 to above 0. Got {shown(levels)}. Pass (1.0, 0.5), say."
        )
    check_schedule(dict.fromkeys(places, 1.0), depth)
    return places


def _lowered(
    state: tuple[float, ...], places: Sequence[int], levels: Sequence[float]
) -> Iterator[tuple[float, ...]]:
    """`state` one level lower from each of the layers `places` on, the last of them first."""
    for at in sorted(places, reverse=True):
        lower = next((level for level in levels if level < state[at]), None)
        if lower is not None:
            yield tuple(min(s, lower) if i >= at else s for i, s in enumerate(state))


def _are_levels(levels: object) -> bool:
    if not isinstance(levels, Sequence) or isinstance(levels, str) or len(levels) < 2:
        return False
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in levels)
    return numbers and levels[0] == 1 and all(0 < b < a for a, b in pairwise(levels))


def _finite(score: Callable[[tuple[float, ...]], float]) -> Callable[[tuple[float, ...]], float]:
    """`score`, whose answers are numbers. Raises `ConfigError`, then or now."""
    if not callable(score):
        raise ConfigError(
            f"Expected `score` as a function of the layers' shares. Got {shown(score)}. Leave it "
            "out for the first token's."
        )

    def asked(shares: tuple[float, ...]) -> float:
        found = score(shares)
        if not isinstance(found, int | float) or not math.isfinite(found):
            raise ConfigError(
                f"Expected a finite number from `score`. Got {shown(found)} for {shares}. Correct "
                "it; higher is better."
            )
        return found

    return asked


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares)
