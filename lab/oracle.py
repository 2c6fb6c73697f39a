"""A ceiling for text questions: keep the tokens that hold text first. Evaluation only.

B crops, L tokens of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokensieve.errors import InputError
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Site, TextContext, VisionTokens


@dataclass(frozen=True, eq=False)
class TextOracle(ScoringMethod):
    """Rank by the generator's own text mask; ties, and the rest, in a seeded random order.

    It knows where text is but not which line is asked for, so it is a ceiling for methods blind
    to the question only where they keep no more than the text.

    Raises `InputError` where the mask does not fit the tokens.
    """

    site = Site.FEATURES
    stochastic = True

    text: Bool[Tensor, "B L"] | None = None
    seed: int = 0

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        """1 to 2 on text, 0 to 1 elsewhere."""
        shape = vision.tokens.shape[:2]
        if self.text is None or self.text.shape != shape:
            got = None if self.text is None else tuple(self.text.shape)
            raise InputError(f"Expected a text mask of shape {tuple(shape)}. Got {got}.")
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(shape, generator=generator)
        return self.text.float() + noise
