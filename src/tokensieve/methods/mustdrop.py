"""Windows of like tokens merged, then what CLS attends to.

B crops, L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.counts import rounded_share
from tokensieve.functional.merge import mean_at
from tokensieve.functional.places import own_places
from tokensieve.functional.topk import topk_mask
from tokensieve.functional.windows import merge_windows, window_of
from tokensieve.methods.base import Method, merged
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)


@dataclass(frozen=True)
class MustDrop(Method):
    """The stage of MustDrop at the encoder: merge like neighbours, protect what CLS attends to [1].

    1. The tokens that CLS attends to most are the key set, a share `protect` of a crop's tokens
       (8 %, as in the released code; no more than the budget). They are not merged, and
       "mustdrop-llm" behind this method drops them last.
    2. The other tokens of a window are merged if their mean cosine over pairs is `threshold` or
       more: into the one CLS attends to most, which becomes their mean. The most alike windows go
       first, and merging ends when the budget is met; the last window gives up only as many tokens
       as are needed, those of least attention.
    3. If merging does not meet the budget, the tokens that CLS attends to least are dropped, a
       merged one by the attention of its place.

    Without a grid windows are runs of `window` * `window` tokens. Where there is no CLS (SigLIP,
    Qwen-VL): the mean attention of all tokens to each. Since some tokens are dropped and some
    merged, there is no assignment to show.

    Differs from the paper: the budget is met exactly, by points 2 and 3; there the number of merged
    tokens follows from the threshold, and later stages inside the LLM drop the rest.
    Differs from the released code: that merges behind block 0 of the encoder, into the last token
    of a window, and reads the key set behind block 23, which the VLM does not see; here both are
    of the encoder's output, the block that the VLM reads.
    Records of nano's first model were made with a key set of half the budget.

    Raises `ConfigError` for a share outside 0 to 1, a threshold outside -1 to 1, a window below 2.

    [1] Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model,
    arXiv 2411.10803.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "MustDrop, arXiv 2411.10803"

    threshold: float = option(0.8, low=-1, high=1)
    window: int = option(3, low=2, high=4096)
    protect: float = option(0.08, low=0, high=1)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        attention_BL, valid_BL = vision.signal("attention"), vision.valid_BL
        free_BL = valid_BL & ~self._key_set(vision, counts)
        into_BL = merge_windows(
            vision.tokens,
            window_of(vision.grid, valid_BL, self.window),
            free_BL,
            attention_BL,
            valid_BL.sum(-1) - counts,
            self.threshold,
        )
        kept_BL = topk_mask(attention_BL, counts, valid_BL & (into_BL == own_places(valid_BL)))
        tokens_BLC = mean_at(vision.tokens, into_BL.masked_fill(~valid_BL, -1), rest=False)
        return merged(vision, kept_BL, tokens_BLC)

    def protects(self, vision: VisionTokens) -> Bool[Tensor, "B L"]:
        return self._key_set(vision, vision.valid_BL.sum(-1))

    def _key_set(self, vision: VisionTokens, counts: Tensor) -> Bool[Tensor, "B L"]:
        valid_BL = vision.valid_BL
        size_B = rounded_share(valid_BL.sum(-1), self.protect, "up").minimum(counts)
        return topk_mask(vision.signal("attention"), size_B, valid_BL)
