"""All visual tokens leave the LLM at a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from tokensieve.errors import BudgetError
from tokensieve.methods.base import Method, keep_all
from tokensieve.types import Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class VTW(Method):
    """From a layer on there are no visual tokens: by then the text has read them [1].

    `keep` is the mean share of tokens over layers, so the layer is keep * depth, rounded. At a
    layer given by hand every `keep` below 1 drops them all.

    The paper finds the layer by a search: the first at which the divergence of the first answer
    token's distribution from that of the whole model is below .003 on a few prompts
    (`tokensieve.hf.search.withdrawal_layer`). Its layer 15 of LLaVA-1.5-7B's 32 is a cut before
    block 15, counted from 0.

    Differs from the released code: positions are kept by default there too; its way to count them
    anew is positions="renumber" before the LLM only.

    Raises `BudgetError` for a count of tokens without a layer.

    [1] Boosting Multimodal Large Language Models with Visual Tokens Withdrawal, arXiv 2405.05803.
    """

    site: ClassVar[Site] = Site.LLM
    budgeted: ClassVar[bool] = False
    paper: ClassVar[str | None] = "VTW, arXiv 2405.05803"

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        if not isinstance(keep, float):
            raise BudgetError(
                "Expected `keep` as a share for 'vtw', of tokens in the layers' mean. Got the "
                f"count {keep}. Pass a fraction, or layer=K."
            )
        return {min(max(round(keep * depth), 1), depth - 1): keep}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        whole_B = counts >= vision.valid_BL.sum(-1)
        return Reduction(keep_all(vision) & whole_B[:, None])
