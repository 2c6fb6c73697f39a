"""keep to counts: one rounding rule, budgets over crops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.budget import check_keep, count, split_evenly
from tokensieve.errors import BudgetError


@pytest.mark.parametrize(
    ("keep", "total", "want"),
    [
        (1.0, 256, 256),
        (1, 256, 256),
        (0.4, 256, 102),  # 102.4
        (0.5, 5, 3),  # 2.5 rounds up
        (0.29, 100, 29),  # 28.999999999999996 in floating point
        (0.05, 256, 13),  # 12.8
        (1e-9, 256, 1),  # never none
        (3, 256, 3),
        (256, 256, 256),
    ],
)
def test_count(keep: float, total: int, want: int) -> None:
    assert count(keep, total) == want


@pytest.mark.parametrize("keep", [0, 0.0, -0.1, 1.7, 3.0, math.nan, math.inf, True, "0.4", None])
def test_bad_keep_is_named(keep: object) -> None:
    with pytest.raises(BudgetError, match="Expected `keep` as a fraction"):
        check_keep(keep)


@settings(deadline=None)
@given(st.integers(2, 10**9), st.lists(st.integers(1, 600), min_size=1, max_size=6))
def test_a_count_is_the_most(keep: int, sizes: list[int]) -> None:
    total = sum(sizes)
    assert count(keep, total) == min(keep, total)
    if keep >= total:
        assert split_evenly(keep, sizes) == split_evenly(1, sizes) == sizes


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.integers(1, 5000))
def test_fraction_is_within_half_a_token(keep: float, total: int) -> None:
    got = count(keep, total)
    assert 1 <= got <= total
    assert got == 1 or abs(got - keep * total) <= 0.5 + 1e-6


@settings(deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=6), st.data())
def test_shares_of_a_count_are_exact(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    keep = data.draw(st.integers(max(2, len(sizes)), total + 2))
    got = split_evenly(keep, sizes)
    assert sum(got) == min(keep, total)
    assert all(1 <= part <= size for part, size in zip(got, sizes, strict=True))


def test_fraction_is_taken_of_each_crop() -> None:
    assert split_evenly(0.4, [256, 100, 1]) == [102, 40, 1]


def test_leftovers_go_to_the_largest_remainder() -> None:
    # 10 over 3 : 3 : 4 of 10 is exact; 11 gives 3.3, 3.3, 4.4: the last has most left over
    assert split_evenly(11, [30, 30, 40]) == [3, 3, 5]


def test_fewer_tokens_than_crops() -> None:
    with pytest.raises(BudgetError, match="at least 3 tokens of a picture, one per crop"):
        split_evenly(2, [10, 10, 10])
