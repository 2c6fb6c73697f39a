"""Greedy choices of tokens against slow loops from the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokensieve.errors import (
    InputError,
    NonFiniteError,
    PromptError,
    UnknownNameError,
    UnsupportedError,
)
from tokensieve.functional import cosine, dpp
from tokensieve.functional.diversity import max_min_diversity
from tokensieve.functional.dpp import greedy_dpp
from tokensieve.methods.registry import get_method
from tokensieve.types import TextContext, VisionTokens

N, WIDTH = 26, 12
COUNTS = (1, 2, 9, 25)


def drawn(seed: int = 0, shift: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, WIDTH)).astype(np.float32) + shift


def kept(
    name: str,
    x: np.ndarray,
    text: np.ndarray | None = None,
    counts: tuple[int, ...] = COUNTS,
    **options: str,
) -> list[object]:
    """One batch with all counts."""
    v = VisionTokens(torch.from_numpy(x)[None].repeat(len(counts), 1, 1))
    context = None if text is None else TextContext(torch.from_numpy(text))
    method = get_method(name, **options)
    return [i.tolist() for i in method.reduce(v, torch.tensor(counts), context).indices()]


def distances(x: np.ndarray) -> np.ndarray:
    unit = x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    return 1 - unit @ unit.T


def todre(x: np.ndarray, k: int, rule: str, start: str) -> list[int]:
    mean = x.mean(0)
    near = [float(t @ mean / np.linalg.norm(t) / np.linalg.norm(mean)) for t in x]
    chosen = [int(np.argmax(near) if start == "closest" else np.argmin(near))]
    far = distances(x)
    while len(chosen) < k:
        join = min if rule == "k-centre" else sum
        worth = {j: join(far[j, i] for i in chosen) for j in range(len(x)) if j not in chosen}
        chosen.append(max(worth, key=worth.__getitem__))
    return sorted(chosen)


@pytest.mark.parametrize("rule", ["k-centre", "max-sum"])
@pytest.mark.parametrize("start", ["closest", "farthest"])
def test_todre_equals_a_loop(rule: str, start: str) -> None:
    x = drawn()
    got = kept("todre", x, rule=rule, start=start)
    assert got == [todre(x, k, rule, start) for k in COUNTS]
    other = "max-sum" if rule == "k-centre" else "k-centre"
    assert got != [todre(x, k, other, start) for k in COUNTS]
    begun = "closest" if start == "farthest" else "farthest"
    assert got != [todre(x, k, rule, begun) for k in COUNTS]


def test_todre_refuses_unknown_options() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'k-centre'"):
        get_method("todre", rule="k-center")
    with pytest.raises(UnknownNameError, match="Known: closest, farthest"):
        get_method("todre", start="first")


@pytest.mark.parametrize("name", ["divprune", "todre", "cdpruner"])
def test_the_budget_is_met_where_products_overflow(name: str) -> None:
    x, text = drawn() * np.float32(1e19), drawn(1)[:3]
    assert [len(i) for i in kept(name, x, text)] == list(COUNTS)


def relevance(x: np.ndarray, text: np.ndarray) -> np.ndarray:
    cosines = [
        np.mean([t @ w / np.linalg.norm(t) / np.linalg.norm(w) for w in text.astype(np.float64)])
        for t in x
    ]
    return (np.array(cosines) - min(cosines)) / (max(cosines) - min(cosines))


def cdpruner(x: np.ndarray, quality: np.ndarray, k: int) -> list[int]:
    """Each time the token with which the determinant is largest, computed anew."""
    kernel = (1 - distances(x)) * quality[:, None] * quality
    chosen: list[int] = []
    while len(chosen) < k:
        open_ = [j for j in range(len(x)) if j not in chosen]
        sets = [[*chosen, j] for j in open_]
        chosen.append(open_[int(np.argmax([np.linalg.det(kernel[np.ix_(s, s)]) for s in sets]))])
    return sorted(chosen)


@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_cdpruner_equals_determinants(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setattr(dpp, "_AHEAD", ahead)
    counts = (1, 2, 5, 10)  # with more than its width, 12, the determinant is 0
    x, text = drawn(), np.random.default_rng(5).normal(size=(4, WIDTH)).astype(np.float32)
    quality = relevance(x, text)
    got = kept("cdpruner", x, text, counts)
    assert got == [cdpruner(x, quality, k) for k in counts]
    assert got != [cdpruner(x, np.ones(N), k) for k in counts]
    assert got != [sorted(np.argsort(-quality)[:k].tolist()) for k in counts]


def test_dpp_takes_a_copy_last() -> None:
    """Of copies one is taken, the others after all that is new, in their order."""
    x = torch.eye(4)[None, [0, 0, 1, 2, 2, 3]]
    quality = torch.tensor([[0.9, 1.0, 0.1, 0.5, 0.5, 0.001]])
    valid = torch.ones(1, 6, dtype=torch.bool)
    picked = [
        greedy_dpp(x, quality, torch.tensor([k]), valid)[0].nonzero()[:, 0].tolist()
        for k in range(7)
    ]
    assert picked[1:5] == [[1], [1, 3], [1, 2, 3], [1, 2, 3, 5]]
    assert picked[0] == []
    assert picked[5:] == [[0, 1, 2, 3, 5], list(range(6))]


def test_cdpruner_says_what_is_missing() -> None:
    v = VisionTokens(torch.from_numpy(drawn())[None])
    one, method = torch.tensor([3]), get_method("cdpruner")
    with pytest.raises(UnsupportedError, match="Expected the prompt's text"):
        method.reduce(v, one)
    with pytest.raises(PromptError, match="Expected text beside the picture"):
        method.reduce(v, one, TextContext(torch.zeros(0, WIDTH)))
    with pytest.raises(InputError, match=r"width 12, as the visual tokens\. Got 5"):
        method.reduce(v, one, TextContext(torch.ones(2, 5)))
    with pytest.raises(NonFiniteError, match="finite text embeddings"):
        method.reduce(v, one, TextContext(torch.full((2, WIDTH), torch.nan)))


@pytest.mark.parametrize("floats", [0, N * (N + 7) // 2, N * N + 2 * 7 * WIDTH, 80_000_000])
def test_what_is_kept_of_the_cosines_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, floats: int
) -> None:
    """Nothing, half, one crop or all of them; in parts of 7 of 26 tokens."""
    monkeypatch.setattr(cosine, "_PART", 7)
    monkeypatch.setattr(cosine, "_FLOATS", floats)
    x = torch.randn(3, N, WIDTH, generator=torch.Generator().manual_seed(3))
    valid = torch.ones(3, N, dtype=torch.bool)
    valid[1, 4:9] = False
    x[1, 4:9] = torch.nan
    got = max_min_diversity(x, torch.tensor([9, 9, 0]), valid)
    for b, count in enumerate((9, 9, 0)):
        real = valid[b].nonzero()[:, 0]
        far = distances(x[b][valid[b]].numpy())
        np.fill_diagonal(far, np.inf)
        chosen = [int(far.min(1).argmax())]
        while len(chosen) < count:
            nearest = far[:, chosen].min(1)
            nearest[chosen] = -1
            chosen.append(int(nearest.argmax()))
        want = sorted(real[chosen].tolist()) if count else []
        assert got[b].nonzero()[:, 0].tolist() == want
