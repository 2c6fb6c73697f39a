"""Batched choices equal slow, obvious loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tokensieve.functional.diversity import facility_location, max_min_diversity
from tokensieve.functional.gate import decided_share, gated_mask
from tokensieve.functional.topk import topk_mask

RNG = np.random.default_rng(0)


def top(scores: np.ndarray, k: int, free: np.ndarray) -> set[int]:
    order = sorted((i for i in range(len(scores)) if free[i]), key=lambda i: (-scores[i], i))
    return set(order[:k])


def slow_max_min(x: np.ndarray, k: int) -> set[int]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    far = lambda i, j: 1 - float(unit[i] @ unit[j])  # noqa: E731
    everyone = range(len(x))
    chosen = [max(everyone, key=lambda i: min(far(i, j) for j in everyone if j != i))]
    while len(chosen) < k:
        left = [i for i in everyone if i not in chosen]
        chosen.append(max(left, key=lambda i: min(far(i, j) for j in chosen)))
    return set(chosen)


def slow_cover(x: np.ndarray, weight: np.ndarray, k: int) -> set[int]:
    L = len(x)
    d = np.array([[np.sqrt(np.mean((x[i] - x[j]) ** 2)) for j in range(L)] for i in range(L)])
    m, chosen = d.mean(1), []
    while len(chosen) < k:
        left = [j for j in range(L) if j not in chosen]
        gains = [sum(weight[i] * max(m[i] - d[i, j], 0) for i in range(L)) for j in left]
        chosen.append(left[int(np.argmax(gains))])
        m = np.minimum(m, d[:, chosen[-1]])
    return set(chosen)


def slow_gate(scores: np.ndarray, x: np.ndarray, k: int) -> set[int]:
    q = 1 / (1 + np.exp(-scores))
    c = q.var() / (q.mean() * (1 - q.mean()))
    rho = np.clip((c - 0.1) / 0.1, 0, 1)
    chosen = slow_cover(x, q, int(np.round((1 - rho) * k)))
    free = np.array([i not in chosen for i in range(len(x))])
    return chosen | top(scores, k - len(chosen), free)


def masks(kept: torch.Tensor) -> list[set[int]]:
    return [set(row.nonzero()[:, 0].tolist()) for row in kept]


def padded(x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L + 2, C) with two tokens of junk at the end, and the valid mask."""
    B, L, C = x.shape
    tokens = torch.full((B, L + 2, C), 77.0)
    tokens[:, :L] = torch.from_numpy(x)
    valid = torch.ones(B, L + 2, dtype=torch.bool)
    valid[:, L:] = False
    return tokens, valid


def test_topk_breaks_ties_by_order() -> None:
    scores = RNG.integers(0, 4, (5, 12)).astype(np.float32)
    valid = RNG.random((5, 12)) < 0.8
    counts = torch.tensor([0, 1, 3, 5, 2])
    got = masks(topk_mask(torch.from_numpy(scores), counts, torch.from_numpy(valid)))
    assert got == [top(s, int(k), v) for s, k, v in zip(scores, counts, valid, strict=True)]


def test_topk_takes_a_real_score_of_minus_infinity_before_padding() -> None:
    """Or the budget would not be met: padding stands first and would win the tie."""
    scores = torch.tensor([[9.0, -torch.inf, 1.0, -torch.inf]])
    valid = torch.tensor([[False, True, True, True]])
    assert masks(topk_mask(scores, torch.tensor([2]), valid)) == [{1, 2}]
    assert masks(topk_mask(scores, torch.tensor([3]), valid, -scores)) == [{1, 2, 3}]


def test_max_min_diversity() -> None:
    x = RNG.normal(size=(4, 15, 6)).astype(np.float32)
    tokens, valid = padded(x)
    counts = torch.tensor([1, 4, 9, 15])
    got = masks(max_min_diversity(tokens, counts, valid))
    assert got == [slow_max_min(c, int(k)) for c, k in zip(x, counts, strict=True)]


def test_facility_location() -> None:
    x = RNG.normal(size=(4, 14, 5)).astype(np.float32)
    weight = RNG.random((4, 14)).astype(np.float32)
    tokens, valid = padded(x)
    weights = torch.nn.functional.pad(torch.from_numpy(weight), (0, 2), value=9.0)
    counts = torch.tensor([1, 3, 8, 14])
    got = masks(facility_location(tokens, weights, counts, valid))
    want = [slow_cover(*row, int(k)) for *row, k in zip(x, weight, counts, strict=True)]
    assert got == want


@pytest.mark.parametrize("spread", [0.2, 1.6, 1.9, 8.0])
def test_gate(spread: float) -> None:
    """Flat, half decided and decided scores; the gate is open, between, and shut."""
    x = RNG.normal(size=(3, 20, 5)).astype(np.float32)
    scores = (spread * RNG.normal(size=(3, 20)) - 0.5).astype(np.float32)
    tokens, valid = padded(x)
    padded_scores = torch.nn.functional.pad(torch.from_numpy(scores), (0, 2), value=30.0)
    counts = torch.tensor([2, 7, 16])
    got = masks(gated_mask(padded_scores, tokens, counts, valid))
    assert got == [slow_gate(*row, int(k)) for *row, k in zip(scores, x, counts, strict=True)]


def test_decided_share_is_zero_for_flat_and_one_for_sure_scores() -> None:
    valid = torch.ones(2, 10, dtype=torch.bool)
    flat, sure = torch.full((10,), -0.7), torch.tensor([60.0, -60.0] * 5)
    assert_close(decided_share(torch.stack([flat, sure]), valid), torch.tensor([0.0, 1.0]))
