"""Resampling and concatenation of neighbours against torch's own and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torch.testing import assert_close

from tokensieve.errors import UnknownNameError
from tokensieve.functional.grid import cells, shares
from tokensieve.methods.registry import get_method
from tokensieve.types import VisionTokens

H, W, C = 6, 9, 5


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, H * W, C, generator=torch.Generator().manual_seed(seed))


def samples(mode: str, x: torch.Tensor, k: int) -> torch.Tensor:
    """In the order of `cells`, whose centres are not in reading order for every k."""
    v = VisionTokens(x, grid=(H, W))
    reduction = get_method("interpolate", mode=mode).reduce(v, torch.tensor([k]))
    assert reduction.indices()[0].tolist() == sorted(cells((H, W), k)[1].tolist())
    assert reduction.tokens is not None
    return reduction.tokens[0, cells((H, W), k)[1]]


@pytest.mark.parametrize("shape", [(2, 3), (4, 6)])
def test_bilinear_on_a_grid_is_torchs(shape: tuple[int, int]) -> None:
    x = picture()
    image = x.view(1, H, W, C).permute(0, 3, 1, 2)
    want = interpolate(image, shape, mode="bilinear", align_corners=False)
    got = samples("bilinear", x, shape[0] * shape[1])
    assert_close(got, want[0].flatten(1).T)
    corners = interpolate(image, shape, mode="bilinear", align_corners=True)
    assert not torch.allclose(got, corners[0].flatten(1).T, atol=1e-3)


def test_area_of_whole_tokens_is_a_mean() -> None:
    x = picture(1)
    image = x.view(1, H, W, C).permute(0, 3, 1, 2)
    want = interpolate(image, (2, 3), mode="area")
    assert_close(samples("area", x, 6), want[0].flatten(1).T)
    assert not torch.allclose(samples("bilinear", x, 6), want[0].flatten(1).T, atol=1e-3)


def line(values: np.ndarray, i: int, n: int, mode: str) -> np.ndarray:
    """Sample i of n of a line of tokens."""
    size = len(values)
    if mode == "bilinear":
        at = min(max((i + 0.5) * size / n - 0.5, 0), size - 1)
        left, right = math.floor(at), min(math.floor(at) + 1, size - 1)
        return (1 - (at - left)) * values[left] + (at - left) * values[right]
    low, high = i * size / n, (i + 1) * size / n
    parts = [max(0, min(high, t + 1) - max(low, t)) * values[t] for t in range(size)]
    return sum(parts) / (high - low)


@pytest.mark.parametrize("mode", ["bilinear", "area"])
@pytest.mark.parametrize("k", [1, 7, 11, 23, 53])
def test_any_number_equals_a_loop(mode: str, k: int) -> None:
    x = picture(2)
    rows = x[0].view(H, W, C).double().numpy()
    per_band = shares((H, W), k)
    want = []
    for band, n in enumerate(per_band):
        across = line(rows, band, len(per_band), mode)
        want += [line(across, i, n, mode) for i in range(n)]
    assert_close(samples(mode, x, k), torch.from_numpy(np.stack(want)).float())


def test_without_a_grid_it_is_a_line() -> None:
    x = torch.arange(8.0)[None, :, None]
    reduction = get_method("interpolate").reduce(VisionTokens(x), torch.tensor([4]))
    assert reduction.apply(x)[0][:, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_unknown_mode() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'bilinear'"):
        get_method("interpolate", mode="bilinaer")


def test_token_concat_by_hand() -> None:
    # 2 x 2 cells of a 4 x 4 grid: tokens 0, 1, 4, 5 each give a quarter of 8 channels
    x = torch.arange(16.0)[None, :, None] + torch.arange(8) / 10
    v = VisionTokens(x, grid=(4, 4))
    got = get_method("token-concat").reduce(v, torch.tensor([4])).apply(x)[0]
    assert_close(got[0], torch.tensor([0.0, 0.1, 1.2, 1.3, 4.4, 4.5, 5.6, 5.7]))
    assert_close(got[3], torch.tensor([10.0, 10.1, 11.2, 11.3, 14.4, 14.5, 15.6, 15.7]))


def test_token_concat_equals_a_loop() -> None:
    x = picture(3)
    v = VisionTokens(x, grid=(H, W))
    for k in (1, 5, 17, 53, 54):
        label, centre = cells((H, W), k)
        want = {}
        for cell in range(k):
            members = [t for t in range(H * W) if label[t] == cell]
            channels = [x[0, members[c * len(members) // C], c] for c in range(C)]
            want[int(centre[cell])] = torch.stack(channels)
        reduction = get_method("token-concat").reduce(v, torch.tensor([k]))
        assert_close(reduction.apply(x)[0], torch.stack([want[place] for place in sorted(want)]))
