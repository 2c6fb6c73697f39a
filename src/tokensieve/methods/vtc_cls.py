"""The attention of CLS over several layers.

B crops, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from tokensieve.fields import option
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import EncoderInfo, Kind, Signal, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class VtcCls(ScoringMethod):
    """Keep the tokens that CLS attends to most, summed over the last layers [1].

    Where there is no CLS (SigLIP, Qwen-VL): the mean attention of all tokens to each.

    layers: how many, the one that the VLM reads the last of them; all there are in a shallower
        encoder. The paper sums over several; that it is eight, and the last ones, is our choice.

    Neither the paper's number of layers nor its released code could be looked at; what else differs
    is not known.

    Raises `ConfigError` for fewer than one layer.

    [1] [CLS] Token Tells Everything Needed for Training-free Efficient MLLMs (VTC-CLS),
    arXiv 2412.05819.
    """

    site: ClassVar[Site] = Site.FEATURES
    paper: ClassVar[str | None] = "VTC-CLS, arXiv 2412.05819"

    layers: int = option(8, low=1, high=256)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {
            _name(back): Signal(Kind.CLS_ATTENTION, encoder.block - back)
            for back in range(max(1, min(self.layers, encoder.block + 1)))
        }

    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        total_BL = vision.signal(_name(0)).float()
        for back in range(1, self.layers):
            if _name(back) in vision.signals:  # a shallow encoder has fewer
                total_BL = total_BL + vision.signal(_name(back)).float()
        return total_BL


def _name(back: int) -> str:
    """The signal of the layer `back` before the one the VLM reads."""
    return f"attention-{back}"
