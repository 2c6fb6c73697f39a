"""Reconstruction: dropped tokens are unseen, gradients reach the selector, pixels come back."""

from __future__ import annotations

import pytest
import torch

from tokensieve.errors import ConfigError
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.nn.config import ObjectiveConfig, ReconstructorConfig, SelectorConfig
from tokensieve.nn.reconstructor import FeatureReconstructor, ImageReconstructor
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (3, 4))
SELECTOR = SelectorConfig(encoder=ENCODER, depth=1)
RECONSTRUCTOR = ReconstructorConfig(encoder=ENCODER, depth=1)


def features() -> torch.Tensor:
    return torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))


def test_dropped_tokens_are_not_seen() -> None:
    model = FeatureReconstructor(RECONSTRUCTOR).eval()
    mask = (torch.arange(12) % 3 == 0).float().expand(2, 12)
    changed = features().masked_fill((mask == 0)[..., None], 42.0)
    assert torch.equal(model(features(), mask), model(changed, mask))


@pytest.mark.parametrize("width", [16, 8])
def test_kept_tokens_are_seen(width: int) -> None:
    config = ReconstructorConfig(encoder=ENCODER, depth=1, width=width, heads=2)
    model = FeatureReconstructor(config).eval()
    out = model(features(), torch.ones(2, 12))
    assert out.shape == (2, 12, 16)
    assert not torch.equal(out, model(features() + 1, torch.ones(2, 12)))


@pytest.mark.parametrize("estimator", ["gumbel", "straight-through", "soft-topk"])
@pytest.mark.parametrize("objective", ["when-less-is-enough", "adaptive", "plain"])
def test_gradients_reach_every_weight(estimator: str, objective: str) -> None:
    torch.manual_seed(0)
    options = ObjectiveConfig(estimator=estimator, objective=objective)
    model = SelectorAutoencoder(SELECTOR, RECONSTRUCTOR, options)
    losses = model(features(), generator=torch.Generator().manual_seed(0))
    losses["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert float(model.selector.head.weight.grad.abs().sum()) > 0
    assert 0 <= float(losses["kept"]) <= 1


def test_loss_is_the_sum_of_its_parts_with_the_picture() -> None:
    config = ReconstructorConfig(encoder=ENCODER, depth=1, image_depth=1, patch=6)
    model = SelectorAutoencoder(SELECTOR, config, ObjectiveConfig(image_weight=0.5))
    losses = model(features(), pixels=torch.rand(2, 3, 18, 24))
    parts = losses["reconstruction"] + losses["surprise"] + losses["image"]
    torch.testing.assert_close(losses["loss"], parts)


@pytest.mark.parametrize("junk", [9.0, float("nan")])
def test_padding_takes_no_part(junk: float) -> None:
    torch.manual_seed(0)
    config = ReconstructorConfig(encoder=ENCODER, depth=1, positions="none")
    options = ObjectiveConfig(estimator="straight-through", objective="when-less-is-enough")
    model = SelectorAutoencoder(SELECTOR, config, options).eval()
    alone = model(features())
    tokens = torch.cat([features(), torch.full((2, 5, 16), junk)], 1)
    padded = model(tokens, valid_BL=torch.arange(17).expand(2, 17) < 12)
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value)


@pytest.mark.parametrize("patch", [1, 4, 12, 14])
def test_pixels_have_the_pictures_size(patch: int) -> None:
    config = ReconstructorConfig(encoder=ENCODER, image_depth=1, image_width=16, patch=patch)
    assert ImageReconstructor(config)(features()).shape == (2, 3, 3 * patch, 4 * patch)


def test_picture_without_patch_size() -> None:
    with pytest.raises(ConfigError, match="Expected `patch`"):
        ImageReconstructor(RECONSTRUCTOR)
