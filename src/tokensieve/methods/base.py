"""The method protocol: tensors in, `Reduction` out. No model names here.

B crops, L tokens of a crop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.functional.topk import topk_mask
from tokensieve.types import EncoderInfo, Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Method(ABC):
    """One way to shorten visual tokens. Subclasses are frozen dataclasses; fields are its options.

    Class attributes describe it to the CLI, the docs and the contract tests.
    """

    site: ClassVar[Site]
    trained: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()  # of {"pixels", "text", "grid"}
    exact: ClassVar[bool] = True  # False: may keep fewer tokens than asked
    stochastic: ClassVar[bool] = False  # True: depends on its `seed` field
    paper: ClassVar[str | None] = None  # "Title, arXiv id"

    def bind(self, encoder: EncoderInfo) -> Self:
        """This method made ready for `encoder` (load or check weights); itself by default."""
        return self

    @abstractmethod
    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        """Keep `counts[b]` tokens of crop b."""


@dataclass(frozen=True)
class ScoringMethod(Method):
    """A method that ranks tokens: the highest scores stay, in original order.

    Scores are comparable between crops, so a pooled budget goes where they are highest.
    """

    @abstractmethod
    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        """Higher is kept first."""

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        return Reduction(topk_mask(self.scores(vision, text), counts, vision.valid_BL))


def keep_all(vision: VisionTokens) -> Bool[Tensor, "B L"]:
    """Mask of every real token."""
    return vision.valid_BL.clone()


def keep_none(vision: VisionTokens) -> Bool[Tensor, "B L"]:
    """Mask of no token."""
    return torch.zeros_like(vision.valid_BL)
