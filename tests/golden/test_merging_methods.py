"""VisionZip, PruMerge and MustDrop, against slow loops from the papers' formulas.

n tokens of a crop, k kept, c channels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from tokensieve.functional.grid import cells
from tokensieve.methods.registry import get_method
from tokensieve.types import Reduction, VisionTokens

GRID, N = (6, 8), 48
Values = dict[int, np.ndarray]


def crop(seed: int = 0, grid: tuple[int, int] | None = GRID, smooth: bool = False) -> VisionTokens:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, N, 6, generator=g)
    if smooth:  # windows of 3 x 3 are alike, the more the nearer to the top left
        rows, columns = torch.arange(6)[:, None].expand(GRID), torch.arange(8).expand(GRID)
        window = (rows // 3 * 3 + columns // 3).flatten()
        tokens = tokens[:, window] + (0.1 + 0.2 * window)[:, None] * tokens.roll(1, 1)
    signals = {
        "attention": (2 * torch.randn(1, N, generator=g)).softmax(-1),
        "keys": torch.randn(1, N, 5, generator=g),
    }
    return VisionTokens(tokens, grid, signals=signals)


def top(scores: np.ndarray, k: int, among: list[int] | None = None) -> list[int]:
    among = list(range(len(scores))) if among is None else among
    return sorted(sorted(among, key=lambda i: (-scores[i], i))[:k])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def compare(r: Reduction, v: VisionTokens, want: Values) -> None:
    assert r.indices()[0].tolist() == sorted(want)
    got = r.apply(v.tokens)[0].numpy()
    np.testing.assert_allclose(got, np.stack([want[i] for i in sorted(want)]), atol=1e-5)


def arrays(v: VisionTokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, keys = v.signals["attention"][0].numpy(), v.signals["keys"][0].numpy()
    return v.tokens[0].numpy(), a, keys


# --- VisionZip


def visionzip(v: VisionTokens, k: int, c: int, by: str = "keys") -> Values:
    x, a, keys = arrays(v)
    keys = x if by == "tokens" else keys
    dominant = top(a, k - c)
    rest = [i for i in range(N) if i not in dominant]
    step = max(1, len(rest) // c)
    targets = rest[::step][:c]
    members: dict[int, list[int]] = {t: [t] for t in targets}
    for i in rest:
        if i not in targets:
            best = max(targets, key=lambda t: cosine(keys[i], keys[t]))
            members[best].append(i)
    return {i: x[i] for i in dominant} | {t: x[m].mean(0) for t, m in members.items()}


@pytest.mark.parametrize(("k", "c"), [(2, 1), (10, 2), (32, 5), (45, 7), (N, 8)])
def test_visionzip(k: int, c: int) -> None:
    """c: 10 of 64, half a token rounded up, at least one."""
    v = crop(1)
    r = get_method("visionzip").reduce(v, torch.tensor([k]))
    compare(r, v, visionzip(v, k, c))
    if k == 10:
        with pytest.raises(AssertionError):
            compare(r, v, visionzip(v, k, c, by="tokens"))
        with pytest.raises(AssertionError):
            compare(r, v, visionzip(v, k, c + 1))


@pytest.mark.parametrize(("k", "c"), [(64, 10), (128, 20), (192, 30)])
def test_visionzip_has_the_papers_budgets(k: int, c: int) -> None:
    g = torch.Generator().manual_seed(2)
    signals = {
        "attention": torch.rand(1, 576, generator=g),
        "keys": torch.randn(1, 576, 4, generator=g),
    }
    v = VisionTokens(torch.randn(1, 576, 4, generator=g), (24, 24), signals=signals)
    kept = get_method("visionzip").reduce(v, torch.tensor([k])).kept[0]
    dominant = top(signals["attention"][0].numpy(), k - c)
    assert kept.sum() == k
    assert kept[dominant].all()
    assert not kept[top(signals["attention"][0].numpy(), k)].all()


# --- PruMerge


def merged(
    v: VisionTokens, kept: list[int], neighbours: int, weighted: bool = True, mean: bool = False
) -> Values:
    x, a, keys = arrays(v)
    a = a if weighted else np.ones_like(a)
    out = {}
    for i in kept:
        others = [j for j in range(N) if j != i]
        near = sorted(others, key=lambda j: -cosine(keys[i], keys[j]))[:neighbours]
        out[i] = x[i] + sum(a[j] * x[j] for j in near)
        if mean:
            out[i] = (a[i] * x[i] + sum(a[j] * x[j] for j in near)) / a[[i, *near]].sum()
        out[i] = out[i] if len(kept) < N else x[i]
    return out


@pytest.mark.parametrize("k", [1, 6, 20, 40, N])
@pytest.mark.parametrize("neighbours", [3, 32])
@pytest.mark.parametrize("mean", [False, True])
def test_prumerge(k: int, neighbours: int, mean: bool) -> None:
    v = crop(3)
    method = get_method("prumerge", neighbours=neighbours, averaged=mean)
    r = method.reduce(v, torch.tensor([k]))
    kept = top(v.signals["attention"][0].numpy(), k)
    compare(r, v, merged(v, kept, neighbours, mean=mean))
    if k == 6:
        with pytest.raises(AssertionError):
            compare(r, v, merged(v, kept, neighbours, weighted=False))
        with pytest.raises(AssertionError):
            compare(r, v, merged(v, kept, neighbours - 1))


def test_prumerge_keeps_outliers_up_to_the_budget() -> None:
    v = crop(3)
    a = v.signals["attention"][0].numpy()
    first, third = np.quantile(a, [0.25, 0.75])
    outliers = [i for i in range(N) if a[i] > third + 1.5 * (third - first)]
    assert 2 < len(outliers) < 12
    method = get_method("prumerge", counts="outliers")
    assert not method.exact
    compare(method.reduce(v, torch.tensor([30])), v, merged(v, outliers, 32))
    compare(method.reduce(v, torch.tensor([2])), v, merged(v, top(a, 2), 32))
    flat = replace(v, signals={**v.signals, "attention": torch.full((1, N), 1 / N)})
    assert method.reduce(flat, torch.tensor([30])).indices()[0].tolist() == [0]


@pytest.mark.parametrize("k", [1, 6, 21, 40, N])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.75, 1.0])
def test_prumerge_plus(k: int, uniform: float) -> None:
    v = crop(4)
    a = v.signals["attention"][0].numpy()
    u = max(1, math.floor(uniform * k + 0.5)) if uniform else 0
    even = cells(GRID, u)[1].tolist()
    kept = even + top(a, k - u, among=[i for i in range(N) if i not in even])
    r = get_method("prumerge-plus", uniform=uniform).reduce(v, torch.tensor([k]))
    compare(r, v, merged(v, sorted(kept), 32))
    if k == 21 and uniform == 0.75:
        assert sorted(kept) != top(a, k)


# --- MustDrop


def mustdrop(v: VisionTokens, k: int, threshold: float, protect: float, side: int = 3) -> Values:
    x, a, _ = arrays(v)
    protected = top(a, min(math.ceil(protect * N - 1e-9), k))
    windows: dict[tuple[int, int], list[int]] = {}
    for i in range(N):
        y, z = divmod(i, GRID[1])
        place = (y // side, z // side) if v.grid else (0, i // side**2)
        if i not in protected:
            windows.setdefault(place, []).append(i)
    alike = {
        place: np.mean([cosine(x[i], x[j]) for i, j in combinations(members, 2)])
        for place, members in windows.items()
        if len(members) > 1
    }
    values: Values = {i: x[i] for i in range(N)}
    for place in sorted(alike, key=lambda w: -alike[w]):
        if alike[place] < threshold or len(values) <= k:
            continue
        members = sorted(windows[place], key=lambda i: (-a[i], i))
        absorbed = members[1:][::-1][: len(values) - k]
        values[members[0]] = x[[members[0], *absorbed]].mean(0)
        for i in absorbed:
            del values[i]
    left = top(a, k, among=list(values))
    return {i: values[i] for i in left}


@pytest.mark.parametrize("k", [2, 9, 16, 30, 41, N])
@pytest.mark.parametrize(
    ("threshold", "protect"), [(0.8, 0.08), (0.8, 0.0), (0.0, 0.9), (-1.0, 0.5)]
)
@pytest.mark.parametrize("grid", [GRID, None])
def test_mustdrop(k: int, threshold: float, protect: float, grid: tuple[int, int] | None) -> None:
    v = crop(5, grid, smooth=True)
    method = get_method("mustdrop", threshold=threshold, protect=protect)
    compare(method.reduce(v, torch.tensor([k])), v, mustdrop(v, k, threshold, protect))


def test_mustdrop_merges_and_drops() -> None:
    """Or the loops above would compare rankings by attention only."""
    v = crop(5, smooth=True)
    x, a, _ = arrays(v)
    for k in (9, 30):
        values = mustdrop(v, k, 0.8, 0.08)
        changed = [i for i, value in values.items() if not np.array_equal(value, x[i])]
        assert changed
        method = get_method("mustdrop", threshold=1.0)
        assert method.reduce(v, torch.tensor([k])).indices()[0].tolist() == top(a, k)
    r = get_method("mustdrop").reduce(v, torch.tensor([30]))
    with pytest.raises(AssertionError):
        compare(r, v, mustdrop(v, 30, 0.8, 0.0))
    with pytest.raises(AssertionError):
        compare(r, v, mustdrop(v, 30, 0.8, 0.08, side=2))


@pytest.mark.parametrize("name", ["visionzip", "prumerge", "prumerge-plus", "mustdrop", "vflowopt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_crop_asked_for_all_its_tokens_is_untouched_in_a_batch(name, dtype) -> None:
    one, other = crop(6, smooth=True), crop(7, smooth=True)
    v = VisionTokens(
        torch.cat([one.tokens, other.tokens]).to(dtype),
        GRID,
        patches=torch.rand(2, N, 12, generator=torch.Generator().manual_seed(1)),
        signals={key: torch.cat([one.signals[key], other.signals[key]]) for key in one.signals},
    )
    r = get_method(name).reduce(v, torch.tensor([20, N]))
    assert torch.equal(r.tokens[1], v.tokens[1])
    assert not torch.equal(r.tokens[0], v.tokens[0])
    assert r.tokens.dtype == dtype
    assert get_method(name).reduce(v, torch.tensor([N, N])).tokens is None
