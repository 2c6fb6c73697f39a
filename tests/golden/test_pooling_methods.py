"""TokenFLEX's and LLaVolta's pooling, from cases worked out on paper."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tokensieve.methods.registry import get_method, method_class
from tokensieve.types import Site, VisionTokens

# a grid of 4 x 4 tokens that say their place: 0 1 2 3 / 4 5 6 7 / 8 9 10 11 / 12 13 14 15
VISION = VisionTokens(torch.arange(16.0)[None, :, None], grid=(4, 4))


def means(name: str, count: int, **options: object) -> list[float]:
    reduction = get_method(name, **options).reduce(VISION, torch.tensor([count]))
    return [float(value) for value in reduction.apply(VISION.tokens)[0]]


def test_tokenflex_is_adaptive_average_pooling_where_the_grid_divides() -> None:
    assert means("tokenflex", 4) == [2.5, 4.5, 10.5, 12.5]  # (0 + 1 + 4 + 5) / 4, ...
    pool = torch.nn.functional.adaptive_avg_pool2d
    want = pool(VISION.tokens.view(1, 1, 4, 4), (2, 2)).flatten()
    assert_close(torch.tensor(means("tokenflex", 4)), want)
    assert means("tokenflex", 1) == [7.5]
    assert method_class("tokenflex").site is Site.FEATURES  # before the projector


def test_llavolta_pools_runs_as_they_stand_in_the_prompt() -> None:
    """Stride 4: 0..3, 4..7, ... have the means 1.5, 5.5, 9.5, 13.5; as cells they would not."""
    assert means("llavolta", 4) == [1.5, 5.5, 9.5, 13.5]
    assert means("llavolta", 2) == [3.5, 11.5]
    want = torch.nn.functional.avg_pool1d(VISION.tokens.mT, 8, 8).flatten()
    assert_close(torch.tensor(means("llavolta", 2)), want)
    assert means("llavolta", 4, rows=False) == [2.5, 4.5, 10.5, 12.5]
    assert get_method("llavolta").llm_stages(32, 0.25) == {2: 0.25}
