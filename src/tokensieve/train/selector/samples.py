"""Pictures rebuilt from features, side by side: from all tokens, the selector's, random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import ConfigError
from tokensieve.files import written_whole
from tokensieve.functional.topk import topk_mask
from tokensieve.nn.autoencoder import SelectorAutoencoder
from tokensieve.train.batches import generator_of
from tokensieve.viz.sheet import Panel, sheet

_SEED = 431


@torch.no_grad()
def write_samples(
    path: Path,
    model: SelectorAutoencoder,
    store: FeatureStore,
    rows: Int[Tensor, "N"],
    share: float = 0.2,
    heading: str = "",
) -> None:
    """A sheet with one row per crop of `rows`, written whole: the picture, then what the image
    reconstructor makes of all tokens, of the selector's `share` and of as many random ones.

    Raises `ConfigError` for a model without an image reconstructor.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    crops = store.batch(rows, pixels=True).to(device)
    if model.image is None or crops.pixels is None:
        raise ConfigError("Expected an image reconstructor. Set reconstructor.image_depth.")
    valid_BL = crops.valid_BL
    scores_BL = model.selector.scores(crops.features, crops.valid, crops.grid)
    chance_BL = torch.rand(scores_BL.shape, generator=generator_of(_SEED, 0)).to(device)
    counts_B = (share * valid_BL.sum(-1)).round().long().clamp_min(1)
    masks = {
        "all tokens": valid_BL,
        f"selector's {share:.0%}": topk_mask(scores_BL, counts_B, valid_BL),
        f"random {share:.0%}": topk_mask(chance_BL, counts_B, valid_BL),
    }
    target_BLC = model.selector.standardise(crops.features)
    columns = [[Panel(_picture(pixels), "picture") for pixels in crops.pixels]]
    for name, mask_BL in masks.items():
        rebuilt_BLC = model.reconstructor(
            target_BLC, mask_BL.to(target_BLC), crops.valid, crops.grid
        )
        drawn = model.image(rebuilt_BLC, crops.valid, crops.grid)
        columns.append([Panel(_picture(pixels), name) for pixels in drawn])
    model.train(was_training)
    with written_whole(path) as part:
        sheet(list(zip(*columns, strict=True)), heading=heading, width=224).save(part)


def _picture(pixels_3HV: Float[Tensor, "3 H V"]) -> Image.Image:
    values = (pixels_3HV.clamp(0, 1) * 255).round().permute(1, 2, 0)
    return Image.fromarray(values.byte().cpu().numpy().astype(np.uint8))
