"""Intervals, packed hits and paired comparisons."""

import numpy as np
import pytest

from tokensieve.errors import InputError
from tokensieve.evaluate.stats import (
    bootstrap_mean,
    pack_hits,
    paired_difference,
    seed_mean,
    sign_flips,
    unpack_hits,
    wilson,
)


def test_wilson_matches_the_printed_formula() -> None:
    # Made by hand from Wilson's formula for 81 of 263, z = 1.96: (0.2553, 0.3662).
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.3), (10, 0.7, 1.0)])
def test_wilson_stays_in_0_1_at_the_ends(right: int, low: float, high: float) -> None:
    found = wilson(right, 10)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.low >= low
    assert found.high <= high


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(right: int, total: int) -> None:
    with pytest.raises(InputError, match="Expected 0 <= right <= total"):
        wilson(right, total)


@pytest.mark.parametrize("total", [1, 7, 8, 1000])
def test_hits_survive_packing(total: int) -> None:
    hits = np.random.default_rng(total).random(total) < 0.5
    np.testing.assert_array_equal(unpack_hits(pack_hits(hits), total), hits)


def test_unpacking_too_few_bits_is_an_error() -> None:
    with pytest.raises(InputError, match="Expected hits of 20"):
        unpack_hits(pack_hits(np.ones(3, dtype=bool)), 20)


def test_bootstrap_covers_about_95_percent() -> None:
    """The interval holds the true mean in about 95 of 100 draws."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        found = bootstrap_mean((rng.random(120) < 0.3).astype(float), seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 51 <= covered <= 60


def test_pairing_is_what_narrows_the_difference() -> None:
    """Two runs that differ on 2 of 400 pictures: pairs tell, shuffled pairs do not."""
    rng = np.random.default_rng(1)
    theirs = rng.random(400) < 0.5
    ours = theirs.copy()
    ours[np.flatnonzero(~theirs)[:12]] = True
    paired = paired_difference([ours], [theirs])
    assert paired.low > 0
    shuffled = paired_difference([ours], [rng.permutation(theirs)])
    assert shuffled.low < 0 < shuffled.high


def test_signs_are_flipped_in_pairs() -> None:
    """Ten differences of one sign: two of 1,024 draws are as far, p = .002."""
    none, all_ = np.zeros(10), np.ones(10)
    assert sign_flips([all_], [none]) == pytest.approx(2 / 1024, abs=0.003)
    assert sign_flips([all_], [all_]) == 1
    mixed = np.array([1.0, 0.0] * 5)
    assert sign_flips([mixed], [1 - mixed]) == 1
    assert sign_flips([mixed, mixed], [none]) == pytest.approx(2 / 32, abs=0.02)


def test_seeds_are_averaged_per_picture() -> None:
    a, b = np.array([True, False]), np.array([True, True])
    np.testing.assert_allclose(seed_mean([a, b]), [1.0, 0.5])
    np.testing.assert_allclose(seed_mean([a, np.ones(3, dtype=bool)]), [1.0, 0.5])
    assert paired_difference([a], [np.ones(3, dtype=bool)]).mean == -0.5
    with pytest.raises(InputError, match="at least one seed"):
        seed_mean([])
