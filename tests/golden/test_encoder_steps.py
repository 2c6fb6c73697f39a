"""One step of each method inside the encoder, against slow loops from the papers' formulas."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tokensieve.errors import BudgetError
from tokensieve.functional.blocks import even_blocks, staged_blocks
from tokensieve.methods.registry import get_method
from tokensieve.nn.thresholds import Thresholds
from tokensieve.types import EncoderInfo, VisionTokens

L, C, K = 14, 6, 5
COUNTS = (14, 13, 9, 7, 4, 1)


def drawn(seed: int = 0) -> dict[str, np.ndarray]:
    g = np.random.default_rng(seed)
    maps = g.random((L, L, 3)) ** np.array([0.1, 3, 9])  # flat, uneven, very uneven
    return {
        "tokens": g.normal(size=(L, C)),
        "keys": g.normal(size=(L, K)),
        "sizes": g.integers(1, 5, L).astype(float),
        "map": maps / maps.sum(1, keepdims=True),
        "row": g.random(L) / L,
    }


def step(name: str, count: int, x: dict[str, np.ndarray], **options: object) -> tuple:
    """Kept places and their values, as the method has it."""
    tensors = {k: torch.from_numpy(v).float()[None] for k, v in x.items()}
    attention = tensors["map" if name == "zero-tprune" else "row"]
    method = get_method(name, **options)
    if name == "dymu":
        method = method.bind(method.thresholds.encoder)  # type: ignore[attr-defined]
    vision = VisionTokens(
        tensors["tokens"],
        signals={"keys": tensors["keys"], "attention": attention},
        sizes=tensors["sizes"],
    )
    made = method.reduce(vision, torch.tensor([count]))
    return made.indices()[0].tolist(), made.apply(vision.tokens)[0].double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def merged(groups: dict[int, list[int]], tokens: np.ndarray, weight: np.ndarray) -> np.ndarray:
    rows = []
    for place in sorted(groups):
        w = weight[groups[place]]
        rows.append((tokens[groups[place]] * w[:, None]).sum(0) / w.sum())
    return np.stack(rows)


def tome(x: dict[str, np.ndarray], count: int, threshold: float | None = None) -> tuple:
    """Rounds of bipartite soft matching; with a threshold one round of what is above it."""
    groups = {i: [i] for i in range(L)}
    keys = x["keys"].copy()
    while len(groups) > count:
        places = sorted(groups)
        first, second = places[0::2], places[1::2]
        pairs = []
        for a in first:
            into = max(second, key=lambda b: (cosine(keys[a], keys[b]), -b))
            pairs.append((cosine(keys[a], keys[into]), -a, into))
        pairs.sort(reverse=True)
        remove = min(len(groups) - count, len(groups) // 2)
        if threshold is not None:
            remove = sum(pair[0] > threshold for pair in pairs)
        for _, a, into in pairs[:remove]:
            groups[into] += groups.pop(-a)
        for place, sources in groups.items():
            w = x["sizes"][sources]
            keys[place] = (x["keys"][sources] * w[:, None]).sum(0) / w.sum()
        if threshold is not None:
            break
    return sorted(groups), merged(groups, x["tokens"], x["sizes"])


@pytest.mark.parametrize("count", COUNTS)
def test_tome_equals_loops(count: int) -> None:
    for seed in range(4):
        x = drawn(seed)
        places, values = step("tome", count, x)
        want_places, want_values = tome(x, count)
        assert places == want_places
        assert_close(values, want_values, rtol=1e-5, atol=1e-5)


def test_tome_weighs_by_size() -> None:
    """A mean that counts every token once is another one."""
    x = drawn()
    _, values = step("tome", 7, x)
    _, wrong = tome({**x, "sizes": np.ones(L)}, 7)
    assert np.abs(values - wrong).max() > 1e-2


def thresholds(value: float) -> Thresholds:
    encoder = EncoderInfo("toy", C, -1, 2, 1, 4)
    return Thresholds(encoder, (0.2, 0.8), ((value, value), (value, value)))


@pytest.mark.parametrize("value", [0.4, 0.5, 0.7])
def test_dymu_merges_what_is_above_the_threshold(value: float) -> None:
    seen = set()
    for seed in range(6):
        x = drawn(seed)
        places, values = step("dymu", 10, x, thresholds=thresholds(value))
        want_places, want_values = tome(x, 1, threshold=value)
        assert places == want_places  # between 5 and 20 in all of these
        assert_close(values, want_values, rtol=1e-5, atol=1e-5)
        seen.add(len(places))
    assert len(seen) > 1


def test_dymu_keeps_from_half_to_twice_the_budget() -> None:
    x = drawn()
    assert len(step("dymu", 3, x, thresholds=thresholds(1.0))[0]) == 6
    assert len(step("dymu", 12, x, thresholds=thresholds(-1.0))[0]) == 7  # each of half joins
    assert step("dymu", 3, x, thresholds=thresholds(1.0))[0] == tome(x, 6)[0]


def test_thresholds_are_linear_between_shares() -> None:
    encoder = EncoderInfo("toy", C, -1, 2, 1, 4)
    table = Thresholds(encoder, (0.2, 0.6), ((0.1, 0.5), (0.3, 0.9)))
    shares = torch.tensor([0.1, 0.2, 0.4, 0.6, 1.0])
    assert_close(table.at(0, shares), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3]))
    assert_close(table.at(1, shares), torch.tensor([0.5, 0.5, 0.7, 0.9, 0.9]))


def evit(x: dict[str, np.ndarray], count: int, divide: bool = False) -> tuple:
    order = sorted(range(L), key=lambda i: (-x["row"][i], i))
    alone, rest = order[: count - 1], order[count - 1 :]
    values = {i: x["tokens"][i] for i in alone}
    if count == L:  # nothing to fuse
        return list(range(L)), x["tokens"]
    fused = sum(x["row"][i] * x["tokens"][i] for i in rest)
    values[rest[0]] = fused / (sum(x["row"][i] for i in rest) if divide else 1)
    return sorted(values), np.stack([values[i] for i in sorted(values)])


@pytest.mark.parametrize("count", COUNTS)
def test_evit_equals_loops(count: int) -> None:
    x = drawn(2)
    places, values = step("evit", count, x)
    want_places, want_values = evit(x, count)
    assert places == want_places
    assert_close(values, want_values, rtol=1e-5, atol=1e-5)
    places, averaged = step("evit", count, x, averaged=True)
    if count < 14:
        want = evit(x, count, divide=True)[1]
        assert_close(averaged, want, rtol=1e-5, atol=1e-5)
        assert np.abs(values - want).max() > 1e-2


def page_rank(attention: np.ndarray, iterations: int, left: list[int]) -> np.ndarray:
    rank = {i: 1 / len(left) for i in left}
    for _ in range(iterations):
        new = {j: sum(attention[i, j] * rank[i] for i in left) for j in left}
        rank = {j: value / sum(new.values()) for j, value in new.items()}
    return np.array([rank[i] for i in left])


def important(
    maps: np.ndarray, iterations: int, left: list[int], low: float = 0.01, high: float = 0.7
) -> dict[int, float]:
    ranks = [page_rank(maps[..., head], iterations, left) for head in range(maps.shape[-1])]
    told = [rank for rank in ranks if low <= np.var(rank * len(left)) <= high]
    root = np.sqrt(np.mean([rank**2 for rank in told or ranks], 0))
    return dict(zip(left, root.tolist(), strict=True))


def zero_tprune(
    x: dict[str, np.ndarray], count: int, first: str = "alike", **options: float
) -> list[int]:
    def ranked(left: list[int], iterations: int) -> list[int]:
        rank = important(x["map"], iterations, left, **options)
        return sorted(left, key=lambda i: (-rank[i], i))

    def unlike(left: list[int], alike: int) -> list[int]:
        half = (len(left) + 1) // 2
        upper, lower = left[:half], left[half:]
        nearest = {a: max(cosine(x["keys"][a], x["keys"][b]) for b in upper) for a in lower}
        go = sorted(lower, key=lambda a: (-nearest[a], a))[:alike]
        return sorted(set(left) - set(go))

    every, alike = list(range(L)), (L - count) // 2
    if first == "alike":
        return sorted(ranked(unlike(ranked(every, 1), alike), 30)[:count])
    alike = min(alike, count)
    return unlike(ranked(every, 30)[: count + alike], alike)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("first", ["alike", "unimportant"])
def test_zero_tprune_equals_loops(count: int, first: str) -> None:
    for seed in range(12):
        x = drawn(seed)
        places, values = step("zero-tprune", count, x, first=first)
        assert places == zero_tprune(x, count, first)
        assert_close(values, x["tokens"][places], rtol=1e-5, atol=1e-5)


def test_zero_tprune_leaves_heads_out_and_flows_along_rows() -> None:
    xs = [drawn(seed) for seed in range(8)]
    got = [step("zero-tprune", 5, x)[0] for x in xs]
    assert got != [zero_tprune(x, 5, low=0.0, high=99.0) for x in xs]
    assert got != [zero_tprune({**x, "map": x["map"].transpose(1, 0, 2)}, 5) for x in xs]
    wide = [step("zero-tprune", 5, x, low=0.0, high=99.0)[0] for x in xs]
    assert wide == [zero_tprune(x, 5, low=0.0, high=99.0) for x in xs]


def mctf(x: dict[str, np.ndarray], count: int, info: float = 0.05, size: float = 0.025) -> tuple:
    groups = {i: [i] for i in range(L)}
    weight = x["row"] * x["sizes"]

    def of(place: int) -> tuple[np.ndarray, float, float]:
        s, w = x["sizes"][groups[place]], weight[groups[place]]
        token = (x["tokens"][groups[place]] * w[:, None]).sum(0) / w.sum()
        return token, float((x["row"][groups[place]] * s).sum() / s.sum()), float(s.sum())

    def attraction(i: int, j: int) -> float:
        (xi, ai, si), (xj, aj, sj) = before[i], before[j]
        return (1 + cosine(xi, xj)) / 2 / (ai * aj) ** info / (si * sj) ** size

    def send(sources: list[int], targets: list[int], remove: int) -> None:
        if remove == 0:
            return
        best = {a: max(targets, key=lambda b: (attraction(a, b), -b)) for a in sources}
        order = sorted(sources, key=lambda a: (-attraction(a, best[a]), a))
        for a in order[:remove]:
            groups[best[a]] += groups.pop(a)

    while len(groups) > count:
        places = sorted(groups)
        before = {place: of(place) for place in places}
        remove = min(len(places) - count, len(places) // 2)
        send(places[0::2], places[1::2], remove // 2)
        send(places[1::2], [a for a in places[0::2] if a in groups], (remove + 1) // 2)
    return sorted(groups), merged(groups, x["tokens"], weight)


@pytest.mark.parametrize("count", COUNTS)
def test_mctf_equals_loops(count: int) -> None:
    for seed in range(4):
        x = drawn(seed)
        places, values = step("mctf", count, x)
        want_places, want_values = mctf(x, count)
        assert places == want_places
        assert_close(values, want_values, rtol=1e-4, atol=1e-5)


def test_mctf_has_several_criteria() -> None:
    xs = [drawn(seed) for seed in range(8)]
    for x in xs:
        assert step("mctf", 8, x, information=0.0, size=0.0)[0] == mctf(x, 8, 0, 0)[0]
        # several rounds, in which the attention of what has joined, by size, decides
        assert step("mctf", 2, x, information=2.0)[0] == mctf(x, 2, 2.0)[0]
    assert any(step("mctf", 8, x, information=2.0)[0] != mctf(x, 8)[0] for x in xs)
    assert any(step("mctf", 8, x, size=2.0)[0] != mctf(x, 8)[0] for x in xs)


def token_transforming(x: dict[str, np.ndarray], count: int, temperature: float) -> tuple:
    order = sorted(range(L), key=lambda i: (-x["row"][i], i))
    kept, others = sorted(order[:count]), order[count:]
    matrix = np.zeros((count, L))
    for row, place in enumerate(kept):
        matrix[row, place] = 1
    for i in others:
        near = np.array([cosine(x["keys"][i], x["keys"][j]) for j in kept]) / temperature
        matrix[:, i] = np.exp(near - near.max()) / np.exp(near - near.max()).sum()
    return kept, matrix @ x["tokens"] / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize("count", COUNTS)
def test_token_transforming_equals_loops(count: int) -> None:
    x = drawn(3)
    places, values = step("token-transforming", count, x)
    want_places, want_values = token_transforming(x, count, 0.1)
    assert places == want_places
    assert_close(values, want_values, rtol=1e-5, atol=1e-5)
    if 1 < count < L:
        assert np.abs(values - token_transforming(x, count, 1.0)[1]).max() > 1e-2


def test_schedules_by_hand() -> None:
    assert even_blocks(16, 4, 4) == [13, 10, 7, 4]
    assert even_blocks(64, 4, 4) == [32, 16, 8, 4]  # even steps would end with 19 to 4
    assert even_blocks(64, 4, 4, halve=False) == [49, 34, 19, 4]
    # twelve layers, a third stays: 64 * (1/8)^(1/3) = 32, then 16, then 8, at layers 4, 7 and 10
    assert staged_blocks(64, 8, 12, 3) == [64] * 3 + [32] * 3 + [16] * 3 + [8] * 3
    assert staged_blocks(16, 4, 2, 3) == [8, 4]
    assert staged_blocks(16, 4, 1, 3) == [4]


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 11, 23])
def test_schedules_end_with_the_budget_and_never_grow(blocks: int) -> None:
    for length in (1, 2, 16, 17, 576):
        for keep in sorted({1, 2, length // 7, length // 3, length - 1, length} - {0}):
            if keep > length:
                continue
            for counts in (
                staged_blocks(length, keep, blocks, 3),
                even_blocks(length, keep, blocks, halve=False),
            ):
                assert counts[-1] == keep
                assert all(more >= fewer for more, fewer in pairwise([length, *counts]))
            if keep * 2**blocks < length:
                with pytest.raises(BudgetError, match="Expected `keep` of at least"):
                    even_blocks(length, keep, blocks)
                continue
            counts = even_blocks(length, keep, blocks)
            assert counts[-1] == keep
            for more, fewer in pairwise([length, *counts]):
                assert more - more // 2 <= fewer <= more
