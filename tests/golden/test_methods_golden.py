"""Methods on tiny inputs whose answer can be worked out by hand or by a slow loop."""

from __future__ import annotations

import numpy as np
import torch
from torch.testing import assert_close

from tokensieve.functional.grid import cells
from tokensieve.methods.registry import get_method
from tokensieve.types import VisionTokens


def kept(name: str, v: VisionTokens, count: int, **options: object) -> list[int]:
    reduction = get_method(name, **options).reduce(v, torch.tensor([count]))
    return reduction.indices()[0].tolist()


def test_feature_norm_by_hand() -> None:
    # norms 5, 1, 2, 0, 3
    tokens = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, -2.0], [0.0, 0.0], [0.0, 3.0]]])
    v = VisionTokens(tokens)
    assert kept("feature-norm", v, 2) == [1, 3]
    assert kept("feature-norm", v, 2, largest=True) == [0, 4]


def test_pixel_variance_sees_through_tint() -> None:
    tinted = torch.tensor([0.9] * 4 + [0.5] * 4 + [0.1] * 4)  # channels differ, pixels do not
    faint = torch.tensor([0.5, 0.6] * 6)
    strong = torch.tensor([0.0, 1.0] * 6)
    v = VisionTokens(torch.zeros(1, 3, 2), patches=torch.stack([tinted, faint, strong])[None])
    assert kept("pixel-variance", v, 1) == [2]
    assert kept("pixel-variance", v, 2) == [1, 2]


def test_pixel_variance_equals_a_loop() -> None:
    patches = np.random.default_rng(1).random((1, 9, 27)).astype(np.float32)
    v = VisionTokens(torch.zeros(1, 9, 2), patches=torch.from_numpy(patches))
    want = [sum(np.var(p[c * 9 : c * 9 + 9]) for c in range(3)) for p in patches[0]]
    method = get_method("pixel-variance")
    assert_close(method.scores(v)[0], torch.tensor(want))  # type: ignore[attr-defined]


def test_stride_keeps_the_centres() -> None:
    v = VisionTokens(torch.zeros(1, 36, 2), grid=(6, 6))
    # four cells of 3 x 3: centres at rows and columns 1 and 4
    assert kept("stride", v, 4) == [7, 10, 25, 28]
    # nine cells of 2 x 2: an even cell's centre is its upper left
    assert kept("stride", v, 9) == [0, 2, 4, 12, 14, 16, 24, 26, 28]


def test_stride_follows_the_rectangle_padding_leaves() -> None:
    valid = torch.zeros(1, 6, 6, dtype=torch.bool)
    valid[:, 1:5] = True  # a wide picture in a square crop
    v = VisionTokens(torch.zeros(1, 36, 2), grid=(6, 6), valid=valid.flatten(1))
    # 4 x 6 in six cells: two bands of three, each 2 x 2
    assert kept("stride", v, 6) == [6, 8, 10, 18, 20, 22]


def test_avgpool_equals_a_loop() -> None:
    x = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    v = VisionTokens(torch.from_numpy(x)[None], grid=(5, 6))
    for k in (1, 7, 12, 29):
        label, centre = cells((5, 6), k)
        want = np.stack([x[label.numpy() == c].mean(0) for c in range(k)])
        want = want[np.argsort(centre.numpy())]
        reduction = get_method("avgpool").reduce(v, torch.tensor([k]))
        assert_close(reduction.apply(v.tokens)[0].numpy(), want)


def test_random_is_by_key_and_seed_only() -> None:
    v = VisionTokens(torch.zeros(2, 50, 2), keys=(4, 9))
    both = get_method("random", seed=1).reduce(v, torch.tensor([5, 5])).indices()
    swapped = VisionTokens(torch.ones(2, 50, 2), keys=(9, 4))
    again = get_method("random", seed=1).reduce(swapped, torch.tensor([5, 5])).indices()
    assert both[0].tolist() == again[1].tolist() != both[1].tolist() == again[0].tolist()


def test_random_is_uniform() -> None:
    v = VisionTokens(torch.zeros(400, 10, 1), keys=tuple(range(400)))
    share = get_method("random").reduce(v, torch.full((400,), 3)).kept.float().mean(0)
    # 5 standard deviations of a share of 0.3 over 400 draws
    assert_close(share, torch.full((10,), 0.3), atol=0.115, rtol=0)


def test_downsample_names_the_grid_of_best_fit() -> None:
    method = get_method("downsample")
    # best by area times the smaller ratio of aspects, tried by hand
    assert method.target_grid((16, 16), 256) == (16, 16)
    assert method.target_grid((16, 16), 26) == (5, 5)
    assert method.target_grid((16, 16), 51) == (7, 7)
    assert method.target_grid((24, 12), 72) == (12, 6)
    assert method.target_grid((16, 16), 1) == (1, 1)
