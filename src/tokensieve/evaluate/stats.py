"""Intervals and paired comparisons of hits over the same pictures.

N pictures, S seeds, R bootstrap rounds.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokensieve.errors import InputError

Counts = NDArray[np.int64]
Hits = NDArray[np.bool_]
Scores = NDArray[np.bool_] | NDArray[np.float64]  # hits, or their mean over a picture's topics
ROUNDS = 2000  # bootstrap rounds: the interval's ends move by less than .001 at N = 1000
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def rounded(self, digits: int = 4) -> dict[str, float]:
        """As a plain dict for a record."""
        return {k: round(v, digits) for k, v in vars(self).items()}


def wilson(right: int, total: int) -> Estimate:
    """Share `right / total` with Wilson's 95 % interval.

    Raises `InputError` where there is nothing to count.
    """
    if total <= 0 or not 0 <= right <= total:
        raise InputError(f"Expected 0 <= right <= total, total > 0. Got {right} of {total}.")
    share, z2 = right / total, _Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == total else centre + half
    return Estimate(share, low, high)


def bootstrap_mean(values_N: NDArray[np.floating], *, seed: int = 0) -> Estimate:
    """Mean of one value per picture with a percentile bootstrap interval over pictures.

    Raises `InputError` for an empty array.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if values_N.size == 0:
        raise InputError("Expected at least one value to average. Got none.")
    means_R = _weights(len(values_N), seed) @ values_N.astype(np.float32)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Estimate(float(values_N.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _weights(n: int, seed: int) -> NDArray[np.float32]:
    """(R, N) how often each round draws each picture, over N: one product gives all means."""
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(n, np.full(n, 1 / n), size=ROUNDS)
    return (draws / n).astype(np.float32)


def seed_mean(hits: Sequence[Scores]) -> NDArray[np.float64]:
    """(N,) mean over S seeds of each picture's hits; N is of the seed that saw fewest.

    Raises `InputError` where there is no seed.
    """
    if not hits:
        raise InputError("Expected hits of at least one seed. Got none.")
    fewest = min(map(len, hits))
    return np.asarray(np.stack([h[:fewest] for h in hits]).astype(np.float64).mean(0))


def paired_difference(
    ours: Sequence[Scores], theirs: Sequence[Scores], *, seed: int = 0
) -> Estimate:
    """Mean of ours minus theirs, seeds averaged per picture, pictures resampled in pairs.

    Pictures are in one order everywhere; where one side saw more, the first ones are compared.
    """
    a_N, b_N = seed_mean(ours), seed_mean(theirs)
    both = min(len(a_N), len(b_N))
    return bootstrap_mean(a_N[:both] - b_N[:both], seed=seed)


def sign_flips(ours: Sequence[Scores], theirs: Sequence[Scores], *, seed: int = 0) -> float:
    """The two-sided p of a paired permutation test: how often a difference as large comes up where
    each picture's difference has either sign by chance, of `ROUNDS` draws, this one counted."""
    a_N, b_N = seed_mean(ours), seed_mean(theirs)
    both = min(len(a_N), len(b_N))
    apart_N = (a_N[:both] - b_N[:both]).astype(np.float32)
    drawn = np.random.default_rng(seed).integers(0, 2, (ROUNDS, both), dtype=np.int8)
    sums_R = (2 * drawn - 1).astype(np.float32) @ apart_N
    as_large = int((np.abs(sums_R) >= abs(float(apart_N.sum())) - 1e-4).sum())
    return (1 + as_large) / (1 + ROUNDS)


def pack_hits(hits: Hits) -> str:
    """Hits as base64 of packed bits, first picture in the highest bit."""
    return base64.b64encode(np.packbits(np.asarray(hits, dtype=bool)).tobytes()).decode("ascii")


def unpack_hits(packed: str, total: int) -> Hits:
    """The inverse of `pack_hits` for `total` pictures. Raises `InputError` if bits are missing."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))
    if len(bits) < total:
        raise InputError(f"Expected hits of {total} pictures. Got {len(bits)}.")
    return bits[:total].astype(bool)


def spearman(a_N: NDArray[Any], b_N: NDArray[Any], *, seed: int = 0) -> Estimate:
    """Rank correlation, equal values sharing their mean rank, with a bootstrap interval.

    0 where all values of one side are equal. Raises `InputError` unless both have N >= 2 values.
    """
    if len(a_N) != len(b_N) or len(a_N) < 2:
        raise InputError(
            f"Expected two lists of one length, 2 or more. Got {len(a_N)}, {len(b_N)}."
        )
    x_N, y_N = (_ranks(np.asarray(values)) for values in (a_N, b_N))
    weights_RN = np.vstack([np.full(len(x_N), 1 / len(x_N)), _weights(len(x_N), seed)])
    means = {name: weights_RN @ values for name, values in
             {"x": x_N, "y": y_N, "xy": x_N * y_N, "xx": x_N**2, "yy": y_N**2}.items()}  # fmt: skip
    spread = (means["xx"] - means["x"] ** 2) * (means["yy"] - means["y"] ** 2)
    shared = means["xy"] - means["x"] * means["y"]
    found_R = np.where(spread > 1e-9, shared / np.sqrt(np.maximum(spread, 1e-9)), 0.0)
    low, high = np.quantile(found_R[1:], [0.025, 0.975])
    return Estimate(float(found_R[0]), float(low), float(high))


def _ranks(values_N: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from -1/2 to 1/2, equal values sharing their mean."""
    _, place_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return np.asarray(middle[place_N] / len(values_N) - 0.5)


def pack_counts(counts: NDArray[Any]) -> str:
    """Counts below 65,536 as base64 of little-endian 16-bit numbers."""
    return base64.b64encode(np.asarray(counts, dtype="<u2").tobytes()).decode("ascii")


def unpack_counts(packed: str) -> Counts:
    """The inverse of `pack_counts`."""
    return np.frombuffer(base64.b64decode(packed), dtype="<u2").astype(np.int64)
