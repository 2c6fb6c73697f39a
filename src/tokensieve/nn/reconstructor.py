"""Reconstructors: features from the kept tokens, and pixels from those features.

B crops, L tokens, C encoder width, W stack width, H x V pixels of a crop.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from tokensieve.errors import ConfigError
from tokensieve.nn.config import ReconstructorConfig, StackConfig
from tokensieve.nn.pretrained import Pretrained
from tokensieve.nn.transformer import Layer, Stack
from tokensieve.types import Grids


class FeatureReconstructor(Pretrained[ReconstructorConfig]):
    """All features of a crop from the kept ones.

    The decoder of [1]: a dropped token is one shared learned vector, so it knows only the position
    added to it.

    [1] When Less is Enough, arXiv 2503.16660.
    """

    config_class: ClassVar[type[StackConfig]] = ReconstructorConfig

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__()
        self.config = config
        self.masked_C = nn.Parameter(torch.zeros(config.encoder.width))
        self.stack = Stack(config, config.positions)
        C, W = config.encoder.width, config.stack_width
        # at the encoder's width the residual stream itself is the output: a kept token starts out
        # as its own reconstruction, without which short trainings rank the wrong way round
        self.outlet = nn.Identity() if C == W else nn.Linear(W, C)

    def forward(
        self,
        features_BLC: Float[Tensor, "B L C"],
        mask_BL: Float[Tensor, "B L"],
        valid_BL: Bool[Tensor, "B L"] | None = None,
        grid: Grids | None = None,
    ) -> Float[Tensor, "B L C"]:
        """Reconstruction of standardised features; `mask_BL` is 1 where a token was kept."""
        mask_BL1 = mask_BL[..., None]
        # blended, not indexed: indexing would cut the gradient to the selector
        seen_BLC = mask_BL1 * features_BLC + (1 - mask_BL1) * self.masked_C
        rebuilt: Tensor = self.outlet(self.stack(seen_BLC, valid_BL, grid))
        return rebuilt


class ImageReconstructor(Pretrained[ReconstructorConfig]):
    """Pixels from reconstructed features: layers, then upsampling and residual blocks."""

    config_class: ClassVar[type[StackConfig]] = ReconstructorConfig

    def __init__(self, config: ReconstructorConfig) -> None:
        super().__init__()
        if config.patch < 1 or config.image_depth < 1:
            raise ConfigError(
                "Expected `patch` (pixels along a token's side) and `image_depth` of at least 1 "
                f"for the image reconstructor. Got {config.patch} and {config.image_depth}."
            )
        self.config = config
        C, channels = config.encoder.width, config.image_width
        self.layers = nn.ModuleList(
            Layer(C, config.encoder.heads, config.stack_ffn) for _ in range(config.image_depth)
        )
        self.inlet = nn.Conv2d(C, channels, 1)
        self.stages = nn.ModuleList()
        for factor in _prime_factors(config.patch):
            narrower = max(8, channels // 2)
            self.stages.append(_Upsample(channels, narrower, factor))
            channels = narrower
        self.outlet = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(
        self,
        features_BLC: Float[Tensor, "B L C"],
        valid_BL: Bool[Tensor, "B L"] | None = None,
        grid: Grids | None = None,
    ) -> Float[Tensor, "B 3 H V"]:
        """Pictures of `grid` times `patch` pixels. Raises `ConfigError` unless crops share one."""
        grid = grid or self.config.encoder.grid
        if grid is None or isinstance(grid[0], tuple):
            raise ConfigError(
                "Expected one grid for all crops, to lay tokens out as pictures. Got "
                f"{grid or 'none'}. Leave it out with reconstructor.image_depth=0."
            )
        for layer in self.layers:
            features_BLC = layer(features_BLC, valid_BL)
        x = self.inlet(features_BLC.transpose(1, 2).reshape(*features_BLC.shape[::2], *grid))
        for stage in self.stages:
            x = stage(x)
        pixels: Tensor = self.outlet(x)
        return pixels


class _Upsample(nn.Module):
    """Nearest upsampling, a convolution to fewer channels, a residual block."""

    def __init__(self, channels: int, narrower: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.narrow = nn.Conv2d(channels, narrower, 3, padding=1)
        self.first = nn.Conv2d(narrower, narrower, 3, padding=1)
        self.second = nn.Conv2d(narrower, narrower, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(interpolate(x, scale_factor=self.factor))
        residual: Tensor = self.second(gelu(self.first(gelu(x))))
        return x + residual


def _prime_factors(number: int) -> list[int]:
    """Prime factors, smallest first: 12 -> 2, 2, 3."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
