"""Batches drawn from (seed, step) alone, read one step ahead of the training.

A resumed run, or one on another number of processes, sees the batches of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.data.store.features import FeatureBatch, FeatureStore
from tokensieve.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Rows:
    """Which crops of a store are trained on, and how often each is drawn.

    rows_N: crops to draw from, source after source where there are weights.
    weights_S, counts_S: how often a source is drawn, relative to the others, and how many crops
    it has; None: every crop alike.
    """

    rows_N: Int[Tensor, "N"]
    weights_S: Float[Tensor, "S"] | None = None
    counts_S: Int[Tensor, "S"] | None = None

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        mix: Mapping[str, int | float] | None = None,
        keep_N: Tensor | None = None,
    ) -> Rows:
        """Crops where `keep_N` is True (None: all), each source as often as `mix` says.

        Raises `UnknownNameError` for a source the store does not have, `ConfigError` for a weight
        below 0, or where nothing is left to draw.
        """
        rows_N = torch.arange(len(store)) if keep_N is None else keep_N.nonzero()[:, 0]
        if len(rows_N) == 0:
            raise ConfigError("Expected crops to train on. Got none beside the held-out ones.")
        if mix is None:
            return cls(rows_N)
        for name, weight in mix.items():
            if name not in store.sources:
                raise UnknownNameError.of("source of features", name, store.sources)
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"Expected a weight of 0 or more for '{name}'. Got {weight}.")
        source_N = store.source_N[rows_N]
        weights_S = torch.tensor([float(mix.get(name, 0.0)) for name in store.sources])
        counts_S = torch.bincount(source_N, minlength=len(store.sources))
        weights_S = weights_S * (counts_S > 0)
        if not bool((weights_S > 0).any()):
            raise ConfigError(f"Expected a weight above 0 for a source with crops. Got {mix}.")
        return cls(rows_N[source_N.argsort(stable=True)], weights_S, counts_S)

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, "B"]:
        """`count` crops, with replacement."""
        if self.weights_S is None or self.counts_S is None:
            return self.rows_N[torch.randint(len(self.rows_N), (count,), generator=generator)]
        source_B = torch.multinomial(self.weights_S, count, True, generator=generator)
        share_B = torch.rand(count, generator=generator, dtype=torch.float64)
        within_B = (share_B * self.counts_S[source_B]).long()
        return self.rows_N[(self.counts_S.cumsum(0) - self.counts_S)[source_B] + within_B]

    def shares(self, store: FeatureStore) -> dict[str, float]:
        """How often each source is drawn."""
        counts_S = torch.bincount(store.source_N[self.rows_N], minlength=len(store.sources))
        drawn_S = counts_S.double() if self.weights_S is None else self.weights_S.double()
        return dict(zip(store.sources, (drawn_S / drawn_S.sum()).tolist(), strict=True))


@dataclass(frozen=True)
class Part:
    """One part of an optimiser step's batch on one process, and the noise that goes with it."""

    batch: FeatureBatch
    generator: torch.Generator


@dataclass(frozen=True)
class Batches:
    """The batches of one process: `accumulate` parts a step, of `size` crops over all processes.

    Raises `ConfigError` unless processes and parts divide `size`.
    """

    store: FeatureStore
    rows: Rows
    size: int
    seed: int
    pixels: bool = False
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        parts = self.accumulate * self.world
        if self.size % parts:
            raise ConfigError(
                f"Expected a batch that {self.world} process(es) x {self.accumulate} part(s) "
                f"divide. Got {self.size}. Set train.batch to a multiple of {parts}."
            )

    def step(self, step: int) -> list[Part]:
        """This process's parts of a step, read from the store."""
        generator = generator_of(self.seed, step)
        drawn = self.rows.draw(self.size, generator).chunk(self.accumulate * self.world)
        parts = []
        for number in range(self.rank, len(drawn), self.world):
            # the first part's noise continues the draw; the others have their own
            noise = generator if number == 0 else generator_of(self.seed, step, number)
            parts.append(Part(self.store.batch(drawn[number], pixels=self.pixels), noise))
        return parts

    def steps(self, first: int, end: int) -> Iterator[list[Part]]:
        """Parts of steps `first` to `end` - 1; the next step is read while one is used."""
        with ThreadPoolExecutor(1, "tokensieve-read") as reader:
            ahead: Future[list[Part]] | None = None
            for number in range(first, end):
                ready = ahead or reader.submit(self.step, number)
                ahead = reader.submit(self.step, number + 1) if number + 1 < end else None
                yield ready.result()


def some_of(rows_N: Int[Tensor, "N"], count: int) -> Int[Tensor, "K"]:
    """At most `count` of the rows, at even distances."""
    if len(rows_N) <= count:
        return rows_N
    return rows_N[(torch.arange(count) * len(rows_N)).div(count, rounding_mode="floor")]


def generator_of(seed: int, step: int, part: int = 0) -> torch.Generator:
    """The source of all chance of one part of one step."""
    number = seed * 1_000_003 + step + 1 + part * 7_919_000_017
    return torch.Generator().manual_seed(number & 0x7FFF_FFFF_FFFF)
