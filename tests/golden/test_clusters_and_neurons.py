"""Expediting ViT and CoreMatching beside cases small enough to be worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tokensieve.functional.cluster import cells_near, soft_clusters
from tokensieve.functional.knee import above_knee
from tokensieve.functional.neurons import shared_neurons
from tokensieve.methods.registry import get_method
from tokensieve.types import VisionTokens

# three tokens, five neurons
NEURONS = torch.tensor([[
    [4.0, 3.0, 2.0, 1.0, -1.0],  # active 0 1 2 3; its strongest half 0 1
    [0.0, 5.0, 1.0, -2.0, 2.0],  # active 1 2 4; half of three, rounded up, 1 4
    [1.0, 0.0, -1.0, 3.0, 0.0],  # active 0 3; its half 3
]])  # fmt: skip


@pytest.mark.parametrize(
    ("frequent", "read", "shared"),
    [
        # core neurons of a token: 0 once, 1 twice, 3 once, 4 once. The most frequent one is 1:
        (0.2, [1, 1, 1], [1, 1, 0]),
        # the two most frequent are 1 and, all tied at one token, 0, 3 and 4
        (0.4, [1, 1, 1], [3, 2, 2]),
        # the first token is no part of what is read: 1, 3 and 4 tie for the first place
        (0.2, [0, 1, 1], [2, 2, 1]),
    ],
)
def test_core_neurons_on_paper(frequent: float, read: list[int], shared: list[int]) -> None:
    got = shared_neurons(NEURONS, torch.tensor([read]).bool(), 0.5, frequent)
    assert got.tolist() == [shared]


def test_all_neurons_asleep_share_nothing() -> None:
    assert shared_neurons(-NEURONS.abs(), torch.ones(1, 3).bool()).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        # the line falls 10, 7.5, 5, 2.5, 0; the scores lie 0, 1.5, 3, -1.5, 0 above: knee at 8
        ([9.0, 0.0, 10.0, 8.0, 1.0], [0, 2]),
        # 0, -6.5, -4, -1.5, 0: knee at the first 1
        ([1.0, 10.0, 1.0, 0.0, 1.0], [1]),
        ([2.0, 2.0, 2.0], [0, 1, 2]),  # a straight line: the best, all tied
        ([3.0, 2.0, 1.0], [0]),
        ([5.0], [0]),
    ],
)
def test_the_knee_on_paper(scores: list[float], kept: list[int]) -> None:
    got = above_knee(torch.tensor([scores]), torch.ones(1, len(scores)).bool())
    assert got[0].nonzero()[:, 0].tolist() == kept


def test_core_tokens_stay() -> None:
    scores = torch.tensor([[9.0, 0.0, 10.0, 8.0, 1.0]])
    vision = VisionTokens(torch.zeros(1, 5, 2), signals={"shared": scores})
    kept = [
        get_method("corematching", knee=knee).reduce(vision, torch.tensor([count])).indices()[0]
        for knee, count in ((False, 3), (True, 3), (True, 1))
    ]
    assert [one.tolist() for one in kept] == [[0, 2, 3], [0, 2], [2]]


def test_a_round_of_clustering_on_paper() -> None:
    """Tokens 0, 1, 3 on a line, centres 0 and 2, sharpness ln 2: shares are powers of a half.

    Squared distances to the centres: 0 and 4; 1 and 1; 9 and 1. Shares in the first centre:
    1 / (1 + 1/16) = 16/17; 1/2; (1/512) / (1/512 + 1/2) = 1/257.
    """
    a, b, c = 16 / 17, 1 / 2, 1 / 257
    first = (1 * b + 3 * c) / (a + b + c)
    second = (1 * (1 - b) + 3 * (1 - c)) / (3 - a - b - c)
    tokens, centres = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0]])
    near = torch.ones(3, 2).bool()
    got = soft_clusters(tokens, near, centres, math.log(2), 1)
    assert_close(got, torch.tensor([[first], [second]]))
    near[2, 0] = near[0, 1] = False  # too far in the picture: shares 1, 1/2, 0
    got = soft_clusters(tokens, near, centres, math.log(2), 1)
    assert_close(got, torch.tensor([[0.5 / 1.5], [(0.5 + 3) / 1.5]]))


def test_which_cells_are_near() -> None:
    """A row of six tokens in three cells of two, middles .5, 2.5, 4.5."""
    cell = torch.tensor([0, 0, 1, 1, 2, 2])
    assert cells_near(cell, (1, 6), 3, 1).int().argmax(-1).tolist() == cell.tolist()
    assert cells_near(cell, (1, 6), 3, 2).all()
    many = torch.arange(6)  # six cells: the four nearest
    near = cells_near(many, (1, 6), 6, 2)
    assert near.sum(-1).tolist() == [4] * 6
    assert near[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert near[3].nonzero()[:, 0].tolist() == [1, 2, 3, 4]  # 1 and 5 tie


def slow(tokens: torch.Tensor, grid: tuple[int, int], side: int, **options: float) -> torch.Tensor:
    """Clusters of side x side tokens by loops, all centres near."""
    H, W = grid
    cells = [
        [(r, c) for r in range(i, i + side) for c in range(j, j + side)]
        for i in range(0, H, side) for j in range(0, W, side)
    ]  # fmt: skip
    value = {(r, c): tokens[r * W + c].double() for r in range(H) for c in range(W)}
    centres = [torch.stack([value[p] for p in cell]).mean(0) for cell in cells]
    for _ in range(int(options["rounds"])):
        total = [torch.zeros_like(centres[0]) for _ in cells]
        mass = [0.0] * len(cells)
        for one in value.values():
            weight = [
                math.exp(-options["sharpness"] * float((one - s).square().sum())) for s in centres
            ]
            for k, w in enumerate(weight):
                total[k] = total[k] + w / sum(weight) * one
                mass[k] += w / sum(weight)
        centres = [t / m for t, m in zip(total, mass, strict=True)]
    return torch.stack(centres)


@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_expediting_is_the_loop(rounds: int) -> None:
    tokens = torch.randn(24, 3, generator=torch.Generator().manual_seed(rounds))
    method = get_method("expediting", rounds=rounds, sharpness=0.3)
    got = method.reduce(VisionTokens(tokens[None], grid=(4, 6)), torch.tensor([6]))
    want = slow(tokens, (4, 6), 2, rounds=rounds, sharpness=0.3)
    assert_close(got.apply(tokens[None])[0].double(), want, rtol=1e-4, atol=1e-5)
    if rounds:
        other = slow(tokens, (4, 6), 2, rounds=rounds - 1, sharpness=0.3)
        assert not torch.allclose(want, other, atol=1e-3)


def test_clusters_begin_behind_the_tenth_of_24_layers() -> None:
    counts = get_method("expediting").block_counts(576, 144, 24)
    assert counts == [576] * 9 + [144] * 15
    assert get_method("expediting", after=0.0).block_counts(9, 4, 2) == [4, 4]
    assert get_method("expediting", after=1.0).block_counts(9, 4, 2) == [9, 4]
