"""Methods that rank by the encoder's attention, against slow loops from the papers' formulas.

n tokens of a crop, k kept, c channels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokensieve.errors import ConfigError, UnknownNameError, UnsupportedError
from tokensieve.functional.entropy import patch_entropy
from tokensieve.functional.grid import cells
from tokensieve.functional.tiles import sums_under_tiles
from tokensieve.methods.registry import get_method
from tokensieve.types import EncoderInfo, Kind, VisionTokens

GRID, N = (6, 8), 48
CLIP_L = EncoderInfo("clip_vision_model", 1024, -2, 24, 16, 4096, (24, 24))


def attention(seed: int, crops: int = 1, n: int = N) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(crops, n, generator=g)).softmax(-1)


def crop(**signals: torch.Tensor) -> VisionTokens:
    B, n = next(iter(signals.values())).shape[:2]
    g = torch.Generator().manual_seed(99)
    tokens = torch.randn(B, n, 6, generator=g)
    return VisionTokens(tokens, GRID if n == N else None, signals=signals)


def kept(name: str, v: VisionTokens, k: int, **options: object) -> list[int]:
    return get_method(name, **options).reduce(v, torch.tensor([k])).indices()[0].tolist()


def top(scores: np.ndarray, k: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


# --- what they ask the encoder for, at LLaVA-1.5's shapes


def test_layers_asked_for_are_those_of_the_papers() -> None:
    asked = {
        name: {(s.kind, s.block) for s in get_method(name).signals(CLIP_L).values()}
        for name in (
            "fastervlm",
            "fopru",
            "hired",
            "visionzip",
            "prumerge",
            "prumerge-plus",
            "hiprune",
            "vflowopt",
            "mustdrop",
        )
    }
    cls, received = Kind.CLS_ATTENTION, Kind.RECEIVED_ATTENTION
    assert asked == {
        "fastervlm": {(cls, 22)},
        "fopru": {(received, 22)},
        "hired": {(cls, 0), (cls, 22)},
        "visionzip": {(cls, 22), (Kind.KEYS, 22)},
        "prumerge": {(cls, 22), (Kind.ALL_KEYS, 22)},
        "prumerge-plus": {(cls, 22), (Kind.ALL_KEYS, 22)},
        "hiprune": {(received, 8), (received, 22)},  # "layer 9 of 24" counted from 1
        "vflowopt": {(received, 22)},
        "mustdrop": {(cls, 22)},
    }
    blocks = [s.block for s in get_method("vtc-cls", layers=3).signals(CLIP_L).values()]
    assert blocks == [22, 21, 20]
    shallow = replace(CLIP_L, depth=3, layer=-2)
    assert [s.block for s in get_method("vtc-cls").signals(shallow).values()] == [1, 0]
    assert [s.block for s in get_method("hiprune").signals(shallow).values()] == [0, 1]


# --- FasterVLM and VTC-CLS


@pytest.mark.parametrize("k", [1, 7, 20, N])
def test_fastervlm(k: int) -> None:
    a = attention(1)
    assert kept("fastervlm", crop(attention=a), k) == top(a[0].numpy(), k)


@pytest.mark.parametrize("k", [1, 7, 20, N])
def test_vtc_cls_sums_layers(k: int) -> None:
    layers = [attention(seed) for seed in (1, 2, 3)]
    v = crop(**{f"attention-{i}": a for i, a in enumerate(layers)})
    want = top(sum(a[0].double().numpy() for a in layers), k)
    assert kept("vtc-cls", v, k, layers=3) == want
    assert kept("vtc-cls", v, k) == want  # a shallow encoder has only three
    if k == 7:
        assert kept("vtc-cls", v, k, layers=2) != want
        assert kept("vtc-cls", v, k, layers=1) == top(layers[0][0].numpy(), k)


# --- FoPru


def rows_kept_whole(a: np.ndarray, k: int) -> list[int]:
    """The rows of highest mean, then the best tokens of the next."""
    H, W = GRID
    rows = sorted(range(H), key=lambda r: (-a[r * W : r * W + W].mean(), r))
    chosen: list[int] = []
    for r in rows:
        row = range(r * W, r * W + W)
        chosen += sorted(row, key=lambda i: (-a[i], i))[: k - len(chosen)]
    return sorted(chosen)


@pytest.mark.parametrize("k", [3, 8, 19, 24, N])
def test_fopru(k: int) -> None:
    a = attention(4)
    v = crop(attention=a)
    assert kept("fopru", v, k) == top(a[0].numpy(), k)
    assert kept("fopru", v, k, strategy="row") == rows_kept_whole(a[0].numpy(), k)
    assert kept("fopru", replace(v, grid=None), k, strategy="row") == top(a[0].numpy(), k)
    if k == 8:
        assert rows_kept_whole(a[0].numpy(), k) != top(a[0].numpy(), k)


def test_fopru_rows_count_real_tokens_only() -> None:
    """A half-padded row of high attention wins: its mean is over what is real."""
    a = torch.full((1, N), 0.02)
    a[0, 16:20] = 0.03
    valid = torch.ones(1, N, dtype=torch.bool)
    valid[0, 20:24] = False
    v = replace(crop(attention=a.masked_fill(~valid, 0)), valid=valid)
    assert kept("fopru", v, 4, strategy="row") == [16, 17, 18, 19]


# --- HiRED


def tiles_by_loop(whole: np.ndarray, valid: np.ndarray, tiles: tuple[int, int]) -> np.ndarray:
    """Each token of the whole view goes to the tile over which its centre lies."""
    (H, W), (rows, columns) = whole.shape, tiles
    real = [
        (r * H + y, c * W + x)
        for r in range(rows)
        for c in range(columns)
        for y in range(H)
        for x in range(W)
        if valid[r * columns + c, y * W + x]
    ]
    top_, left = min(y for y, _ in real), min(x for _, x in real)
    height, width = max(y for y, _ in real) + 1 - top_, max(x for _, x in real) + 1 - left
    sums = np.zeros(rows * columns)
    for y in range(H):
        for x in range(W):
            r = int((top_ + (y + 0.5) / H * height) // H)
            c = int((left + (x + 0.5) / W * width) // W)
            sums[r * columns + c] += whole[y, x]
    return sums


@pytest.mark.parametrize("tiles", [(2, 2), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("padding", [0, 2])
def test_hired_shares_by_what_falls_into_a_tile(tiles: tuple[int, int], padding: int) -> None:
    n = tiles[0] * tiles[1]
    H, W = GRID
    canvas = torch.zeros(tiles[0] * H, tiles[1] * W, dtype=torch.bool)
    canvas[padding : tiles[0] * H - padding] = True
    valid = canvas.view(tiles[0], H, tiles[1], W).transpose(1, 2).reshape(n, N)
    valid = torch.cat([torch.ones(1, N, dtype=torch.bool), valid])
    early, late = attention(5, n + 1), attention(6, n + 1)
    v = replace(crop(early=early, late=late), valid=valid, tiles=tiles)
    sums = tiles_by_loop(early[0].view(GRID).numpy(), valid[1:].numpy(), tiles)
    want = np.array([0.3, *(0.7 * sums / sums.sum())])
    got = get_method("hired", alpha=0.3).share(v)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)
    counts = torch.arange(2, n + 3)
    reduction = get_method("hired").reduce(v, counts)
    for b, index in enumerate(reduction.indices()):
        scores = np.where(valid[b], late[b].numpy(), -1)
        assert index.tolist() == top(scores, int(counts[b]))


def test_hired_even_quarters() -> None:
    """Without padding, four tiles are the quarters of the whole view."""
    whole = torch.arange(N, dtype=torch.float32).view(GRID)
    got = sums_under_tiles(whole, torch.ones(4, N, dtype=torch.bool), (2, 2))
    want = [whole[:3, :4], whole[:3, 4:], whole[3:, :4], whole[3:, 4:]]
    assert got.tolist() == [part.sum() for part in want]


def test_hired_shares_nothing_without_tiles() -> None:
    v = crop(early=attention(5, 3), late=attention(6, 3))
    assert get_method("hired").share(v) is None
    assert get_method("fastervlm").share(v) is None


# --- HiPrune


def hiprune(middle: np.ndarray, deep: np.ndarray, k: int, alpha: float, wraps: bool = False):
    H, W = GRID
    anchors = top(middle, math.floor(alpha * k / 5 + 0.5))
    chosen = list(anchors)
    near = set()
    for i in anchors:
        y, x = divmod(i, W)
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        near |= {a * W + b for a, b in around if 0 <= a < H and 0 <= b < W}
        if wraps:
            near |= {j for j in (i - 1, i + 1) if 0 <= j < N}
    for pool in (near, set(range(N))):
        best = sorted(pool - set(chosen), key=lambda i: (-deep[i], i))
        chosen += best[: k - len(chosen)]
    return sorted(chosen)


@pytest.mark.parametrize("k", [3, 12, 25, 40, N])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_hiprune(k: int, alpha: float) -> None:
    a, b = attention(7), attention(8)
    want = hiprune(a[0].numpy(), b[0].numpy(), k, alpha)
    assert kept("hiprune", crop(middle=a, deep=b), k, alpha=alpha) == want


def test_hiprune_does_not_wrap_around_rows() -> None:
    a, b = attention(7), attention(8)
    a[0, 15], b[0, 16] = 1.0, 0.0  # the anchor ends a row, the next begins with the lowest
    plain, wrapped = (hiprune(a[0].numpy(), b[0].numpy(), 25, 0.2, wraps) for wraps in (0, 1))
    assert 16 not in plain
    assert 16 in wrapped
    assert kept("hiprune", crop(middle=a, deep=b), 25, alpha=0.2) == plain
    assert kept("hiprune", crop(middle=a, deep=b), 25, alpha=0.2, as_released=True) == wrapped


# --- VFlowOpt


def entropy_by_loop(patches: np.ndarray) -> np.ndarray:
    grey = patches.reshape(len(patches), 3, -1).mean(1)
    low, high = grey.min(), grey.max()
    out = []
    for patch in grey:
        levels = [min(int((g - low) / (high - low) * 256), 255) for g in patch]
        shares = [levels.count(level) / len(levels) for level in set(levels)]
        out.append(-sum(p * math.log2(p) for p in shares))
    return np.array(out)


def pictures(n: int = N) -> torch.Tensor:
    """Patches of 1 to 16 grey levels: multiples of 1/256 of 255, so that no rounding decides."""
    rng = np.random.default_rng(3)
    out = np.zeros((n, 3, 16), dtype=np.float32)
    for i in range(n):
        out[i] = rng.choice(rng.integers(1, 255, size=1 + i % 16), size=16) + 0.5
    out[0], out[1] = 0.0, 256.0
    return torch.from_numpy(out.reshape(1, n, 48))


def test_entropy_equals_a_loop_whatever_the_normalisation() -> None:
    patches = pictures()
    want = entropy_by_loop(patches[0].numpy())
    valid = torch.ones(1, N, dtype=torch.bool)
    got = patch_entropy(patches, valid)[0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert want[0] == 0 and want.max() > 2  # noqa: PT018
    again = patch_entropy(patches / 256 * 4 - 2, valid)[0].numpy()  # powers of two: no rounding
    np.testing.assert_allclose(again, want, atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 20, 37, N])
@pytest.mark.parametrize(("alpha", "recycle"), [(1.0, 0.1), (3.0, 0.4), (1.0, 0.0)])
def test_vflowopt(k: int, alpha: float, recycle: float) -> None:
    v = replace(crop(attention=attention(9)), patches=pictures())
    entropy = entropy_by_loop(v.patches[0].numpy())
    scores = attention(9)[0].numpy() + alpha * np.exp(entropy) / np.exp(entropy).sum()
    r = max(1, math.floor(recycle * k + 0.5)) if recycle else 0
    best = top(scores, k - r)
    pruned = [i for i in range(N) if i not in best]
    want = {i: v.tokens[0, i].numpy() for i in best}
    groups: list[list[int]] = [[] for _ in range(r)]
    for i in pruned:
        if r:
            groups[int(cells(GRID, r)[0][i])].append(i)
    heads = [max(group, key=lambda i: (scores[i], -i)) for group in groups if group]
    free = [i for i in pruned if i not in heads]
    fill = sorted(free, key=lambda i: (-scores[i], i))[: k - len(best) - len(heads) if r else 0]
    for i in fill:
        want[i] = v.tokens[0, i].numpy()
    for head, group in zip(heads, [group for group in groups if group], strict=True):
        left = [i for i in group if i == head or i not in want]
        weight = scores[left] / scores[left].sum()
        want[head] = (weight[:, None] * v.tokens[0, left].numpy()).sum(0)
    reduction = get_method("vflowopt", alpha=alpha, recycled=recycle).reduce(v, torch.tensor([k]))
    assert reduction.indices()[0].tolist() == sorted(want)
    np.testing.assert_allclose(
        reduction.apply(v.tokens)[0].numpy(), np.stack([want[i] for i in sorted(want)]), atol=1e-6
    )
    if k == 20 and recycle:
        plain = top(attention(9)[0].numpy(), k - r)
        assert plain != best  # entropy matters
        assert [len(group) for group in groups] != [len(pruned)]


# --- options that cannot be


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("vtc-cls", {"layers": 0}, "`layers` of at least 1"),
        ("hired", {"alpha": 1.5}, "`alpha` in \\[0, 1\\]"),
        ("visionzip", {"contextual": -0.1}, "`contextual` in \\[0, 1\\]"),
        ("prumerge", {"neighbours": 0}, "`neighbours` of at least 1"),
        ("prumerge-plus", {"uniform": 1.1}, "`uniform` in \\[0, 1\\]"),
        ("prumerge-plus", {"neighbours": 0}, "`neighbours` of at least 1"),
        ("hiprune", {"middle": 2.0}, "`middle` in \\[0, 1\\]"),
        ("vflowopt", {"alpha": -1.0}, "`alpha` of 0 or more"),
        ("vflowopt", {"alpha": float("nan")}, "`alpha` of 0 or more"),
        ("mustdrop", {"threshold": 1.2}, "`threshold` in \\[-1, 1\\]"),
        ("mustdrop", {"window": 1}, "`window` of at least 2"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        get_method(name, **options)


def test_other_names_and_layers_are_named() -> None:
    with pytest.raises(UnknownNameError, match="rows"):
        get_method("fopru", strategy="rows")
    with pytest.raises(UnknownNameError, match="adaptive"):
        get_method("prumerge", counts="adaptive")
    with pytest.raises(ConfigError, match="`late` from 0 to 23"):
        get_method("hired", late=24).signals(CLIP_L)
    with pytest.raises(UnsupportedError, match="signal 'attention'"):
        get_method("fastervlm").reduce(VisionTokens(torch.zeros(1, 4, 2)), torch.tensor([2]))
