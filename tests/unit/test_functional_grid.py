"""Even cells: exactly k of them, none empty, centres inside, sizes alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.errors import BudgetError
from tokensieve.functional.grid import beside, best_grid, cells, cells_of_crops, grid_centres


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_cells_are_a_partition(H: int, W: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, H * W))
    label, centre = cells((H, W), k)
    assert label.unique().tolist() == list(range(k))
    assert label[centre].tolist() == list(range(k))
    for cell in range(k):
        inside = (label == cell).nonzero()[:, 0]
        rows, columns = (inside // W).unique(), (inside % W).unique()
        assert len(inside) == len(rows) * len(columns)  # a rectangle


def test_cells_of_a_square_are_square() -> None:
    label, _ = cells((16, 16), 64)
    assert label.bincount().tolist() == [4] * 64
    assert label.view(16, 16)[:2, :2].unique().tolist() == [0]


@pytest.mark.parametrize("k", [-1, 13])
def test_impossible_number_of_cells(k: int) -> None:
    with pytest.raises(BudgetError, match="Expected 0 to 12 cells of a 3 x 4 grid"):
        cells((3, 4), k)


def test_ragged_padding_falls_back_to_order() -> None:
    valid = torch.tensor([[True, True, True, False, True, True]])
    target, kept = cells_of_crops(torch.tensor([2]), valid, (2, 3))
    # five tokens in order, cut into 2 + 3: centres are the first of two, the middle of three
    assert target.tolist() == [[0, 0, 4, -1, 4, 4]]
    assert kept.nonzero()[:, 1].tolist() == [0, 4]


def test_empty_crop() -> None:
    target, kept = cells_of_crops(torch.tensor([0]), torch.zeros(1, 4, dtype=torch.bool), (2, 2))
    assert not kept.any()
    assert (target == -1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_best_grid_fits(H: int, W: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, H * W))
    h, w = best_grid((H, W), count)
    assert 1 <= h <= H
    assert 1 <= w <= W
    assert h * w <= count
    centres = grid_centres((H, W), (h, w))
    assert len(centres.unique()) == h * w
    assert int(centres.max()) < H * W


def test_left_and_right_of_each_token() -> None:
    assert beside((2, 3), 1).tolist() == [[-1, 1], [0, 2], [1, -1], [-1, 4], [3, 5], [4, -1]]
    two = beside((1, 2), 2)
    assert two.tolist() == [[-1, 1], [0, -1], [-1, 3], [2, -1]]
    assert torch.equal(beside((1, 2), 2, tiles=(2, 2)), two)  # not as many crops
    assert beside((3, 2), 0).shape == (0, 2)


def test_a_row_goes_on_in_the_next_tile() -> None:
    # a whole view, then 1 x 2 tiles of 2 x 2 tokens: 4 5 | 8 9 over 6 7 | 10 11
    found = beside((2, 2), 3, tiles=(1, 2))
    assert found[:4].tolist() == [[-1, 1], [0, -1], [-1, 3], [2, -1]]
    assert found[4:].tolist() == [[-1, 5], [4, 8], [-1, 7], [6, 10],
                                  [5, 9], [8, -1], [7, 11], [10, -1]]  # fmt: skip
