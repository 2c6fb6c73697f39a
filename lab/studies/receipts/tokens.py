"""A receipt's crops as a VLM's encoder and projector see them.

T crops, L tokens of a crop, C encoder width, D LLM width, P pixel values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import unfold

from lab.studies.receipts.tiles import Receipt
from tokensieve.errors import UnsupportedError
from tokensieve.evaluate.subject import Subject
from tokensieve.types import Site, VisionTokens


@dataclass(frozen=True)
class Encoder:
    """The vision half of a LLaVA-like VLM with square crops and a CLS token.

    mean, std: per colour channel, of the image processor.
    """

    tower: Any
    projector: Any
    layer: int
    side: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, loaded: Subject) -> Encoder:
        """Raises `UnsupportedError` for a model that is not LLaVA-like."""
        base: Any = getattr(loaded.model, "model", None)
        if not hasattr(base, "vision_tower") or not hasattr(base, "multi_modal_projector"):
            raise UnsupportedError(
                f"Expected a LLaVA-like model for receipts. Got {type(loaded.model).__name__}."
            )
        vision, processor = loaded.model.config.vision_config, loaded.processor.image_processor
        return cls(
            base.vision_tower,
            base.multi_modal_projector,
            loaded.model.config.vision_feature_layer,
            vision.image_size,
            vision.patch_size,
            tuple(processor.image_mean),
            tuple(processor.image_std),
        )


@dataclass(frozen=True)
class ReceiptTokens:
    """The crops of one receipt at both sites."""

    features: VisionTokens
    embeds: Float[Tensor, "T L D"]

    def at(self, site: Site) -> VisionTokens:
        """What a method at `site` reads. Raises `UnsupportedError` for another site."""
        if site is Site.FEATURES:
            return self.features
        if site is Site.EMBEDS:
            return replace(self.features, tokens=self.embeds)
        raise UnsupportedError(f"Expected a method at features or embeds. Got site '{site}'.")


def encode_receipt(encoder: Encoder, receipt: Receipt) -> ReceiptTokens:
    """Run encoder and projector over all crops of a receipt."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    pixels = torch.from_numpy(receipt.crops).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - mean) / std
    with torch.no_grad():
        states = encoder.tower(pixels, output_hidden_states=True).hidden_states
        features_TLC = states[encoder.layer][:, 1:]
        embeds_TLD = encoder.projector(features_TLC)
    grid = encoder.side // encoder.patch
    patches_TLP = unfold(pixels, encoder.patch, stride=encoder.patch).transpose(1, 2)
    vision = VisionTokens(
        features_TLC,
        grid=(grid, grid),
        valid=receipt.valid,
        patches=patches_TLP,
        keys=tuple(range(len(pixels))),
    )
    return ReceiptTokens(vision, embeds_TLD)
