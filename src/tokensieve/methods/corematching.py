"""Core tokens: those that activate the neurons the whole prompt activates.

B crops, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.functional.knee import above_knee
from tokensieve.methods.base import ScoringMethod
from tokensieve.schedules.base import geometric
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens

_PLACES = (6 / 32,)


@dataclass(frozen=True)
class CoreMatching(ScoringMethod):
    """From layer 6 of 32 on, the tokens that share most active neurons with the prompt, in the
    feed-forward part of the layer before [1].

    A token's core neurons are the strongest 40 % of its active (positive) ones; the prompt's are
    the fifth of all neurons that are core neurons of most of its tokens. A token's score is how
    many of those it activates. The layer moves with the LLM's depth.

    knee: keep only what lies above the knee of the sorted scores, the point farthest from the line
        between first and last: the paper's rule. `keep` is then the most that stays.

    Differs from the paper: a budget, unless `knee`; both shares are a choice made here, those of
    the work it builds on; the other half, decoding with core neurons alone, is not done: it drops
    weights, not tokens.
    Differs from the released code: that counts neurons shared with the prompt's fifth token from
    the end, chooses anew at layers 6 to 19 and blanks what it drops in the cache, with no token
    less.

    [1] CoreMatching, arXiv 2505.19235.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "CoreMatching, arXiv 2505.19235"

    knee: bool = False

    def __post_init__(self) -> None:
        # An instance says of itself what its class says of the default.
        object.__setattr__(self, "exact", not self.knee)

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"shared": Signal(Kind.SHARED_NEURONS)}

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        return vision.signal("shared").float()

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        scores_BL = self.scores(vision, text)
        kept_BL = self._best(scores_BL, counts, vision.valid_BL)
        if self.knee and not torch.equal(kept_BL, vision.valid_BL):
            kept_BL &= above_knee(scores_BL, vision.valid_BL)
        return Reduction(kept_BL)
