"""Max-min diversity: tokens that differ most from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.functional.diversity import max_min_diversity
from tokensieve.methods.base import Method
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class DivPrune(Method):
    """Greedy max-min diversity in cosine distance [1].

    First the token whose nearest other one is farthest, then always the one farthest from the
    nearest of those chosen; the earlier on a tie.

    Differs from the released code in nothing found: the same tokens on the same embeddings.
    There all tokens of a picture are one set, newline tokens among them: with crops that is
    pool="image" here, without newlines.

    [1] DivPrune, arXiv 2503.02175.
    """

    site: ClassVar[Site] = Site.EMBEDS
    paper: ClassVar[str | None] = "DivPrune, arXiv 2503.02175"

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        return Reduction(max_min_diversity(vision.tokens, counts, vision.valid_BL))
