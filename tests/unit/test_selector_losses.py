"""Losses and estimators against hand-worked numbers and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tokensieve.errors import ConfigError
from tokensieve.nn.config import ObjectiveConfig
from tokensieve.nn.estimators import (
    gumbel_mask,
    soft_topk,
    soft_topk_mask,
    straight_through_mask,
)
from tokensieve.nn.losses import mask_loss, reconstruction_loss


@pytest.mark.parametrize(
    ("reduction", "want"),
    # errors of two tokens of width 2: (3, 4) and (0, 0), then (0, 2) and (0, 0)
    [
        ("mse", (25 + 4) / 8),
        ("rms", ((25 / 2) ** 0.5 + 2**0.5) / 4),
        ("l2", (5 + 2) / 4),
        ("sample-l2", (5 + 2) / 2),
    ],
)
def test_reconstruction_by_hand(reduction: str, want: float) -> None:
    error = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])
    got = reconstruction_loss(error + 1, torch.ones(2, 2, 2), reduction)
    assert_close(got, torch.tensor(want), atol=1e-5, rtol=0)
    # padding with any error changes nothing
    padded = torch.cat([error, torch.full((2, 3, 2), 50.0)], 1)
    valid = torch.arange(5).expand(2, 5) < 2
    again = reconstruction_loss(padded, torch.zeros(2, 5, 2), reduction, valid)
    assert_close(again, torch.tensor(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "want"),
    # shares kept of two pictures: .75 and .25
    [
        ({"p": 0.3}, 0.5),
        ({"p": 0.6}, 0.6),
        ({"p": 0.6, "budget": "picture"}, (0.75 + 0.6) / 2),
        ({"objective": "plain", "a1": 2.0}, 1.0),
        ({"objective": "adaptive", "p": 0.6, "q": 0.1, "a1": 0.1, "a2": 0.1}, 0.05),
        ({"objective": "adaptive", "p": 0.3, "q": 0.8, "a1": 1.0, "a2": 0.5}, 0.25),
    ],
)
def test_mask_term_by_hand(options: dict[str, object], want: float) -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    first_paper = {"estimator": "gumbel", "objective": "when-less-is-enough"}
    got = mask_loss(mask, ObjectiveConfig(**{**first_paper, **options}))
    assert_close(got, torch.tensor(want))


def test_bad_objectives() -> None:
    with pytest.raises(ConfigError, match=r"Expected `p` in \[0, 1\]. Got 1.7"):
        ObjectiveConfig(p=1.7)
    with pytest.raises(ConfigError, match="Expected `tau` above 0"):
        ObjectiveConfig(tau=0.0)


def test_gumbel_keeps_with_probability_sigmoid() -> None:
    scores = torch.tensor([[-2.0, 0.0, 1.0]]).expand(20_000, 3).clone().requires_grad_()
    mask = gumbel_mask(scores, 1.0, torch.Generator().manual_seed(0))
    assert set(mask.detach().unique().tolist()) == {0.0, 1.0}
    # 5 standard deviations over 20,000 draws
    assert_close(mask.detach().mean(0), torch.sigmoid(scores[0]).detach(), atol=0.018, rtol=0)
    mask.sum().backward()
    assert bool((scores.grad > 0).any())


def test_straight_through_is_the_sign_with_a_sigmoid_gradient() -> None:
    scores = torch.tensor([[-1.0, 2.0]], requires_grad=True)
    mask = straight_through_mask(scores, 0.5)
    assert mask.tolist() == [[0.0, 1.0]]
    mask.sum().backward()
    sigmoid = torch.sigmoid(scores.detach() / 0.5)
    assert_close(scores.grad, sigmoid * (1 - sigmoid) / 0.5)


def test_soft_topk_sums_to_the_count() -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(3)) * 5
    valid = torch.arange(30).expand(4, 30) < 25
    counts = torch.tensor([1, 7, 20, 24])
    soft = soft_topk(scores, counts, 0.7, valid)
    assert_close(soft.sum(-1), counts.float(), atol=1e-3, rtol=0)
    assert float(soft[:, 25:].abs().max()) == 0
    hard = soft_topk_mask(scores, counts, 0.7, valid, torch.Generator().manual_seed(0))
    assert hard.sum(-1).tolist() == counts.tolist()


def test_soft_topk_gradient_is_the_finite_difference() -> None:
    scores = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    valid, counts = torch.ones(1, 6, dtype=torch.bool), torch.tensor([2])
    weight = torch.arange(6.0, dtype=torch.float64)

    def value(s: torch.Tensor) -> torch.Tensor:
        return (soft_topk(s, counts, 0.5, valid) * weight).sum()

    leaf = scores.clone().requires_grad_()
    value(leaf).backward()
    steps = 1e-5 * torch.eye(6, dtype=torch.float64)
    slopes = [(value(scores + e) - value(scores - e)) / 2e-5 for e in steps]
    assert_close(leaf.grad[0], torch.stack(slopes), atol=1e-6, rtol=1e-4)
