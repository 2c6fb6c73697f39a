"""PixelPrune by hand, from the paper's rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.errors import UnsupportedError
from tokensieve.functional.prediction import prediction_error
from tokensieve.methods.registry import get_method
from tokensieve.types import VisionTokens

# A letter is a patch. By hand, with A left, B above, C in the corner, row by row:
#   w: the first has no neighbour, it stays. w after w: predicted by A. w, w: predicted.
#   2nd row: w under w: first column, predicted by B. x: C=w is A=w, so B=w is the prediction: x is
#     another, it stays. x: C=w is B=w, so A=x: it is, it goes. w: C=w, B=w, so A=x: w is another
#     and stays.
#   3rd row: w under w goes. x: C=w is A=w, so B=x: it is, it goes. y: C=x is B=x, so A=x: y stays.
#     w: C=x is neither A=y nor B=w: no prediction, it stays although B is w too.
PAGE, STAYS = "wwww wxxw wxyw", "1000 0101 0011"


def page(text: str, values: int = 6) -> tuple[torch.Tensor, tuple[int, int]]:
    """(L, values) patches of one colour each."""
    rows = text.split()
    colours = [float(ord(letter)) for row in rows for letter in row]
    return torch.tensor(colours)[:, None].expand(-1, values).clone(), (len(rows), len(rows[0]))


def vision(patches: torch.Tensor, grid: tuple[int, int] | None, **more) -> VisionTokens:
    return VisionTokens(torch.zeros(1, len(patches), 1), grid, patches=patches[None], **more)


def kept(method, v: VisionTokens, count: int) -> str:
    mask = method.reduce(v, torch.tensor([count])).kept[0]
    return "".join(str(int(stays)) for stays in mask)


def test_a_page_by_hand():
    patches, grid = page(PAGE)
    method = get_method("pixelprune")
    assert (method.tau, method.exact) == (0.0, False)  # as published
    assert kept(method, vision(patches, grid), 12) == STAYS.replace(" ", "")


def test_one_value_that_differs_is_enough():
    """The distance is that of the worst value, not a mean."""
    patches, grid = page(PAGE)
    patches[1, 3] += 1e-3
    assert kept(get_method("pixelprune"), vision(patches, grid), 12)[1] == "1"
    assert kept(get_method("pixelprune", tau=1e-2), vision(patches, grid), 12)[1] == "0"


def test_a_budget_takes_the_furthest():
    """Distances by hand: the first inf; x from w 1; w from x 1; y from x 1; the last w, of which
    nothing is predicted, is its own neighbour above: 0. A tie goes to the earlier."""
    patches, grid = page(PAGE)
    error, _ = prediction_error(patches, grid, torch.ones(12, dtype=torch.bool), 0.0)
    assert error[[0, 5, 7, 10, 11]].tolist() == [float("inf"), 1.0, 1.0, 1.0, 0.0]
    assert kept(get_method("pixelprune"), vision(patches, grid), 3) == "100001010000"
    assert kept(get_method("pixelprune"), vision(patches, grid), 4) == "100001010010"


def test_within_tau_by_hand():
    """A line 0, .6, 1.2, 1.3 with tau=.7. The second is .6 from the first and goes. The third is
    measured against what stands in the second's place, the first: 1.2, it stays. The last goes."""
    patches = torch.tensor([0.0, 0.6, 1.2, 1.3])[:, None]
    method = get_method("pixelprune", tau=0.7)
    assert kept(method, vision(patches, (1, 4)), 4) == "1010"
    assert kept(method, vision(patches, None), 4) == "1010"  # without a grid: a line


def test_padding_is_nobodys_neighbour():
    patches, grid = page("ww ww")
    valid = torch.tensor([[False, True, True, True]])
    # the first two have no neighbour; the last has no corner, so that nothing is predicted
    assert kept(get_method("pixelprune"), vision(patches, grid, valid=valid), 3) == "0111"
    assert kept(get_method("pixelprune"), vision(patches, None, valid=valid), 3) == "0100"


def test_pictures_share_a_budget_and_each_keeps_its_first():
    flat, grid = page("ww ww")
    lively, _ = page("wz ak")
    groups = [vision(flat, grid), vision(lively, grid)]
    parts = get_method("pixelprune").reduce_pool(groups, 3)
    assert [part.kept.sum().item() for part in parts] == [1, 2]
    assert bool(parts[0].kept[0, 0])


def test_without_pixels():
    with pytest.raises(UnsupportedError, match="Expected the pixels under each token"):
        get_method("pixelprune").reduce(VisionTokens(torch.zeros(1, 4, 1)), torch.tensor([2]))


def decoded(patches, grid, gone, tau):
    """The page from what was kept: raster order, each missing patch by its prediction."""
    h, w = grid
    cells = {}

    def near(a, b):
        return (a - b).abs().max() <= tau

    for i in range(h * w):
        r, c = divmod(i, w)
        A, B, C = cells.get((r, c - 1)), cells.get((r - 1, c)), cells.get((r - 1, c - 1))
        if not gone[i]:
            cells[r, c] = patches[i]
        elif A is None or (B is not None and C is not None and near(C, A)):
            cells[r, c] = B
        else:
            cells[r, c] = A
    return torch.stack([cells[divmod(i, w)] for i in range(h * w)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5),
       st.sampled_from([0.0, 0.5, 1.0]))  # fmt: skip
def test_a_page_can_be_decoded_to_within_tau(seed, h, w, tau):
    """What the paper promises: without loss at 0, within tau otherwise."""
    g = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 4, (h * w, 3), generator=g).float() * 0.4
    _, gone = prediction_error(patches, (h, w), torch.ones(h * w, dtype=torch.bool), tau)
    assert float((decoded(patches, (h, w), gone, tau) - patches).abs().max()) <= tau
