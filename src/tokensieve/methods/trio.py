"""Tokens that a layer's own prediction depends on, without near copies.

B crops, L tokens, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.fields import option
from tokensieve.functional.suppression import suppressed_top
from tokensieve.methods.base import Method
from tokensieve.schedules.base import scaled_layers
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)

_PLACES = (1 / 32, 10 / 32, 15 / 32)  # layers 1, 10 and 15 of 32
_COUNTS = (92, 54, 22)  # tokens left there: 64 of 576, mean over layers


@dataclass(frozen=True)
class Trio(Method):
    """At three layers of the LLM, the tokens on which the layer's own prediction depends most, none
    of them almost another's copy [1].

    Saliency is the L2 norm of the gradient, by a token's hidden state, of a loss local to the
    layer: the layer, the last norm and the output layer are run on what is there, and the loss is
    the mean cross-entropy of their likeliest word, at the four places before the prompt's last.
    Tokens are taken in order of saliency; one whose hidden state has a cosine of `similar` or more
    with one already taken waits until no other is left. The cuts lie before layers 1, 10 and 15 of
    32, counted from 0, and move with the depth; `keep` is what remains after the last, the two
    before keep 92/22 and 54/22 as many.

    similar: the cosine from which a token counts as a copy; above 1 none does.

    As the released code has it; the paper was read by its abstract alone. That code calls this
    setting the one for 64 tokens of 576 on average over the layers; its README cuts once, at layer
    16 of 32, behind a method before the LLM: the pair ("visionzip", "trio") with layer=16. Differs
    from it: positions are kept, not renumbered.

    It runs each of these layers once more, forwards and backwards, and needs a mode in which
    gradients exist: `torch.no_grad`, not `torch.inference_mode`.

    [1] TRIO: Token Reduction via Inference-Objective Guidance for Efficient Vision-Language
    Models, arXiv 2602.04657.
    """

    site: ClassVar[Site] = Site.LLM
    paper: ClassVar[str | None] = "TRIO, arXiv 2602.04657"

    similar: float = option(0.8, low=-1, high=2)

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        layers = scaled_layers(depth, _PLACES)
        shares = [many / _COUNTS[-1] for many in _COUNTS[-len(layers) :]]
        if isinstance(keep, int):
            return {at: round(keep * share) for at, share in zip(layers, shares, strict=True)}
        return {at: min(1.0, keep * share) for at, share in zip(layers, shares, strict=True)}

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"saliency": Signal(Kind.SALIENCY, ahead=True)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        return Reduction(
            suppressed_top(
                vision.tokens, vision.signal("saliency"), counts, vision.valid_BL, self.similar
            )
        )
