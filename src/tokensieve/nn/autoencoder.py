"""Selector and reconstructors tied together for training.

B crops, L tokens, C encoder width, H x V pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokensieve.nn.config import ObjectiveConfig, ReconstructorConfig, SelectorConfig
from tokensieve.nn.estimators import (
    explore_mask,
    gumbel_mask,
    soft_topk_mask,
    straight_through_mask,
)
from tokensieve.nn.losses import mask_loss, reconstruction_loss, surprise_losses
from tokensieve.nn.reconstructor import FeatureReconstructor, ImageReconstructor
from tokensieve.nn.selector import Selector
from tokensieve.types import Grids


class SelectorAutoencoder(nn.Module):
    """Drops tokens, rebuilds them, and says what both cost."""

    def __init__(
        self,
        selector: SelectorConfig,
        reconstructor: ReconstructorConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.selector = Selector(selector)
        self.reconstructor = FeatureReconstructor(reconstructor)
        self.image = ImageReconstructor(reconstructor) if reconstructor.image_depth else None

    def sample_mask(
        self,
        scores_BL: Float[Tensor, "B L"],
        valid_BL: Bool[Tensor, "B L"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B L"]:
        """A hard mask of real tokens with the estimator's gradient."""
        o = self.objective
        if o.estimator in ("soft-topk", "explore"):
            draw_B = torch.rand(len(scores_BL), generator=generator).to(scores_BL.device)
            share_B = o.topk_low + (o.topk_high - o.topk_low) * draw_B
            counts_B = (share_B * valid_BL.sum(-1)).round().long().clamp_min(1)
            if o.estimator == "explore":
                return explore_mask(scores_BL, counts_B, valid_BL, generator)
            return soft_topk_mask(scores_BL, counts_B, o.tau, valid_BL, generator)
        if o.estimator == "gumbel":
            return gumbel_mask(scores_BL, o.tau, generator) * valid_BL
        return straight_through_mask(scores_BL, o.tau) * valid_BL

    def forward(
        self,
        features_BLC: Float[Tensor, "B L C"],
        valid_BL: Bool[Tensor, "B L"] | None = None,
        grid: Grids | None = None,
        pixels: Float[Tensor, "B 3 H V"] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses by name: loss (their sum), reconstruction, mask, kept (share), image if asked."""
        real_BL = (
            torch.ones(features_BLC.shape[:2], dtype=torch.bool, device=features_BLC.device)
            if valid_BL is None
            else valid_BL
        )
        # zero weight times NaN padding would still be NaN
        features_BLC = features_BLC.masked_fill(~real_BL[..., None], 0.0)
        target_BLC = self.selector.standardise(features_BLC)
        scores_BL = self.selector.scores(features_BLC, valid_BL, grid)
        mask_BL = self.sample_mask(scores_BL, real_BL, generator)
        rebuilt_BLC = self.reconstructor(target_BLC, mask_BL, valid_BL, grid)
        o = self.objective
        if o.objective == "surprise":
            dropped_BL = (1 - mask_BL.detach()) * real_BL
            raw = (self.selector.restore(rebuilt_BLC), features_BLC.to(rebuilt_BLC.dtype))
            error, guess = surprise_losses(
                rebuilt_BLC, target_BLC, scores_BL, dropped_BL, raw if o.error == "cosine" else None
            )
            losses = {"reconstruction": error, "surprise": o.a1 * guess}
        else:
            losses = {
                "reconstruction": reconstruction_loss(
                    rebuilt_BLC, target_BLC, o.reduction, valid_BL
                ),
                "mask": mask_loss(mask_BL, o, valid_BL),
            }
        if self.image is not None and pixels is not None:
            drawn = self.image(rebuilt_BLC, valid_BL, grid)
            pixels = pixels[..., : drawn.shape[-2], : drawn.shape[-1]]  # no patch is cut off
            patch = self.reconstructor.config.patch
            error = reconstruction_loss(
                _patches(drawn, patch), _patches(pixels, patch), o.reduction, valid_BL
            )
            losses["image"] = o.image_weight * error
        losses["loss"] = torch.stack(list(losses.values())).sum()
        losses["kept"] = mask_BL.detach().sum() / real_BL.sum()
        return losses


def _patches(pixels: Float[Tensor, "B 3 H V"], patch: int) -> Float[Tensor, "B L P"]:
    """The pixels under each token, row-major."""
    return nn.functional.unfold(pixels, patch, stride=patch).transpose(1, 2)
