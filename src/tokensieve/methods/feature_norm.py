"""The norm of the features alone: one line, and hard to beat on plain pages.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Site, TextContext, VisionTokens


@dataclass(frozen=True)
class FeatureNorm(ScoringMethod):
    """Keep the features of smallest (or `largest`) L2 norm."""

    site: ClassVar[Site] = Site.FEATURES

    largest: bool = False

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        vision.require_finite(f"the site '{self.site}'")
        norm_BL: Tensor = torch.linalg.vector_norm(vision.tokens.float(), dim=-1)
        return norm_BL if self.largest else -norm_BL
