"""The attention of CLS: what the encoder itself looks at.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tokensieve.methods.base import ScoringMethod
from tokensieve.types import EncoderInfo, Kind, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class FasterVLM(ScoringMethod):
    """Keep the tokens that CLS attends to most, at the layer the VLM reads [1].

    Softmax over CLS and all patches, mean over heads; of CLIP's 24 blocks that of block 22, which
    LLaVA reads. Kept sets are those of the released code. Where there is no CLS (SigLIP, Qwen-VL):
    the tokens that all tokens attend to most, on average.

    [1] [CLS] Attention is All You Need for Training-Free Visual Token Pruning (FasterVLM),
    arXiv 2412.01818.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "FasterVLM, arXiv 2412.01818"

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        return vision.signal("attention").float()
