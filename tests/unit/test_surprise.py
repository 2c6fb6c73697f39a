"""The default objective: scores learn what dropping a token costs; `cover` spends by that cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from tokensieve.errors import ConfigError
from tokensieve.functional.cover import cover_mask
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.config import ObjectiveConfig, ReconstructorConfig, SelectorConfig
from tokensieve.nn.estimators import explore_mask
from tokensieve.nn.losses import SURPRISE_FLOOR, surprise_losses
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (3, 4))


def test_surprise_by_hand() -> None:
    # squared errors per token of width 2: 4, 1 (kept, must not count), 0
    output = torch.tensor([[[2.0, 2.0], [1.0, 1.0], [0.0, 0.0]]])
    scores = torch.tensor([[math.log(4 + SURPRISE_FLOOR) + 1.0, 99.0, math.log(SURPRISE_FLOOR)]])
    dropped = torch.tensor([[1.0, 0.0, 1.0]])
    error, guess = surprise_losses(output, torch.zeros(1, 3, 2), scores, dropped)
    assert_close(error, torch.tensor(2.0))
    assert_close(guess, torch.tensor(0.5))


def test_surprise_teaches_scores_only_through_the_guess() -> None:
    torch.manual_seed(0)
    model = SelectorAutoencoder(
        SelectorConfig(encoder=ENCODER, depth=1),
        ReconstructorConfig(encoder=ENCODER, depth=1),
        ObjectiveConfig(),
    )
    features = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    losses = model(features, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(losses["reconstruction"], retain_graph=True)
    assert model.selector.head.weight.grad is None
    torch.autograd.backward(losses["surprise"])
    assert model.selector.head.weight.grad is not None
    assert float(model.selector.head.weight.grad.abs().sum()) > 0


def test_explore_counts_padding_and_both_policies() -> None:
    scores = torch.arange(20.0).expand(400, 20)
    valid = torch.arange(20).expand(400, 20) < 16
    counts = torch.full((400,), 4)
    mask = explore_mask(scores, counts, valid, torch.Generator().manual_seed(0))
    assert torch.equal(mask.sum(-1), torch.full((400,), 4.0))
    assert float(mask[:, 16:].sum()) == 0
    share_of_top = mask[:, 12:16].mean(-1)
    assert 0.1 < float((share_of_top <= 0.5).float().mean()) < 0.6  # the random rows
    assert float((share_of_top == 1).float().mean()) > 0.3  # the ranked rows


def test_explore_has_no_gradient_so_only_surprise_takes_it() -> None:
    with pytest.raises(ConfigError, match="Expected an estimator with a gradient"):
        ObjectiveConfig(estimator="explore", objective="plain")


def cover_slowly(
    scores: list[float],
    points: list[list[float]],
    count: int,
    worth: float,
    spread: float,
    cover_spread: float,
) -> set[int]:
    """The definition, one number at a time."""
    L, C = len(scores), len(points[0])
    far = [
        [
            spread * sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True)) / C
            for j in range(L)
        ]
        for i in range(L)
    ]
    cost, doubt = ([math.exp(s) for s in scores] for _ in range(2))
    wary = cover_spread / spread
    bar, kept = worth * sum(sorted(cost)[-count:]) / count, set()
    while len(kept) < count:
        saved = {
            j: sum(max(doubt[i] - wary * far[i][j], 0) for i in range(L))
            for j in range(L)
            if j not in kept
        }
        best = max(saved, key=lambda j: saved[j])
        if saved[best] <= bar:
            break
        kept.add(best)
        cost = [min(cost[i], far[i][best]) for i in range(L)]
        doubt = [min(doubt[i], wary * far[i][best]) for i in range(L)]
    while len(kept) < count:
        best = max(set(range(L)) - kept, key=lambda j: cost[j])
        kept.add(best)
        cost = [min(cost[i], far[i][best]) for i in range(L)]
        doubt = [min(doubt[i], wary * far[i][best]) for i in range(L)]
    return kept


@pytest.mark.parametrize("worth", [0.5, 1.5, 4.0, 100.0])
def test_cover_follows_its_definition(worth: float) -> None:
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(4, 6, generator=generator)
    points = centres[torch.randint(4, (24,), generator=generator)]
    points = points + 0.3 * torch.randn(24, 6, generator=generator)
    scores = torch.randn(24, generator=generator)
    padded = torch.cat([points, torch.full((5, 6), 9.0)])[None]
    valid = (torch.arange(29) < 24)[None]
    for count in (1, 5, 12):
        kept = cover_mask(
            torch.cat([scores, torch.full((5,), 50.0)])[None],
            padded,
            torch.tensor([count]),
            valid,
            worth,
            spread=1.5,
            cover_spread=2.0,
        )
        want = cover_slowly(scores.tolist(), points.tolist(), count, worth, 1.5, 2.0)
        assert set(kept[0].nonzero()[:, 0].tolist()) == want


def test_cover_keeps_a_calm_region_that_ranking_loses() -> None:
    # 40 alike tokens of small error, 10 unlike ones of larger error, room for 5
    calm = torch.ones(40, 8) + 0.01 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    loud = 3 * torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    scores = torch.cat([torch.full((40,), -1.0), torch.full((10,), 0.5)])[None]
    arguments = (scores, torch.cat([calm, loud])[None], torch.tensor([5]))
    valid = torch.ones(1, 50, dtype=torch.bool)
    assert (
        int(cover_mask(*arguments, valid, worth=2.0, spread=1.0, cover_spread=1.0)[0, :40].sum())
        == 1
    )
    assert (
        int(cover_mask(*arguments, valid, worth=1e9, spread=1.0, cover_spread=1.0)[0, :40].sum())
        == 0
    )
