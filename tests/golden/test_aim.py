"""Repeated bipartite merging against a slow loop."""

from __future__ import annotations

import numpy as np
import torch
from torch.testing import assert_close

from tokensieve.methods.registry import get_method
from tokensieve.types import VisionTokens


def by_loop(x: np.ndarray, k: int, weighted: bool = True) -> tuple[list[int], np.ndarray]:
    """Groups of tokens; each round deals them to two halves and joins the most alike pairs.

    weighted: a group counts by its tokens; False: the plain mean of the two that join.
    """
    groups = [([i], i, x[i].astype(np.float64)) for i in range(len(x))]  # members, place, mean
    while len(groups) > k:
        first, second = groups[0::2], groups[1::2]
        pairs = []
        for a in first:
            cosines = [a[2] @ b[2] / np.linalg.norm(a[2]) / np.linalg.norm(b[2]) for b in second]
            pairs.append((max(cosines), a, second[int(np.argmax(cosines))]))
        pairs.sort(key=lambda pair: -pair[0])
        joined = pairs[: min(len(groups) - k, len(groups) // 2)]
        gone = [a[1] for _, a, _ in joined]
        after = []
        for members, place, mean in groups:
            if place in gone:
                continue
            incoming = [a for _, a, b in joined if b[1] == place]
            everyone = members + [m for a in incoming for m in a[0]]
            plain = np.mean([mean, *(a[2] for a in incoming)], axis=0)
            after.append((everyone, place, x[everyone].mean(0) if weighted else plain))
        groups = after
    return [place for _, place, _ in groups], np.stack([mean for _, _, mean in groups])


def test_aim_equals_a_loop() -> None:
    x = np.random.default_rng(4).normal(size=(30, 6)).astype(np.float32)
    counts = (1, 2, 7, 8, 20, 29, 30)
    v = VisionTokens(torch.from_numpy(x)[None].repeat(len(counts), 1, 1))
    reduction = get_method("aim").reduce(v, torch.tensor(counts))
    plain = []
    for got, index, k in zip(reduction.apply(v.tokens), reduction.indices(), counts, strict=True):
        places, means = by_loop(x, k)
        assert index.tolist() == places
        assert_close(got, torch.from_numpy(means).float())
        plain.append(np.array_equal(by_loop(x, k, weighted=False)[1].round(5), means.round(5)))
    assert not all(plain)


def test_a_quarter_takes_two_rounds() -> None:
    """Four copies of each of three tokens, in a row: copies find each other, none else."""
    x = torch.eye(3)[[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]][None]
    reduction = get_method("aim").reduce(VisionTokens(x), torch.tensor([3]))
    assert_close(reduction.apply(x)[0], torch.eye(3))
