"""Bipartite soft matching against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokensieve.functional import matching
from tokensieve.functional.matching import bipartite_match


def by_loop(keys: np.ndarray, remove: int, swap: bool = False) -> list[int]:
    """One crop: alternate split, best partner by cosine, the `remove` best pairs joined."""
    first, second = list(range(0, len(keys), 2)), list(range(1, len(keys), 2))
    if swap:
        first, second = second, first
    edges = []
    for a in first:
        cosines = [
            keys[a] @ keys[b] / np.linalg.norm(keys[a]) / np.linalg.norm(keys[b]) for b in second
        ]
        edges.append((max(cosines), a, second[int(np.argmax(cosines))]))
    target = list(range(len(keys)))
    for _, a, b in sorted(edges, key=lambda e: -e[0])[: min(remove, len(keys) // 2)]:
        target[a] = b
    return target


@pytest.mark.parametrize("part", [3, 1024])
def test_equals_a_loop(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(matching, "_PART", part)
    keys = np.random.default_rng(0).normal(size=(4, 21, 8)).astype(np.float32)
    remove = torch.tensor([0, 3, 10, 99])
    valid = torch.ones(4, 21, dtype=torch.bool)
    got = bipartite_match(torch.from_numpy(keys), remove, valid)
    assert got.tolist() == [by_loop(keys[b], int(remove[b])) for b in range(4)]
    assert got.tolist() != [by_loop(keys[b], int(remove[b]), swap=True) for b in range(4)]
    assert [len(set(row)) for row in got.tolist()] == [21, 18, 11, 11]


def test_padding_takes_no_part() -> None:
    keys = np.random.default_rng(1).normal(size=(2, 9, 4)).astype(np.float32)
    place = torch.tensor([1, 2, 4, 5, 7, 8, 10, 11, 13])
    wide = torch.full((2, 15, 4), float("nan"))
    wide[:, place] = torch.from_numpy(keys)
    valid = torch.zeros(2, 15, dtype=torch.bool)
    valid[:, place] = True
    got = bipartite_match(wide, torch.tensor([2, 4]), valid)
    assert (got == -1).equal(~valid)
    for b, remove in enumerate((2, 4)):
        assert got[b, place].tolist() == place[by_loop(keys[b], remove)].tolist()


def test_of_equal_pairs_the_earlier_joins() -> None:
    keys = torch.ones(1, 6, 2)
    got = bipartite_match(keys, torch.tensor([2]), torch.ones(1, 6, dtype=torch.bool))
    assert got.tolist() == [[1, 1, 1, 3, 4, 5]]
