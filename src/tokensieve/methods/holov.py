"""A budget spread over runs of the picture, so that no part of it is lost.

B crops, L tokens, R runs of a crop, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.fields import option
from tokensieve.functional.runs import run_of, spend_on_runs, sums_of_runs
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.types import (
    EncoderInfo,
    Kind,
    Reduction,
    Signal,
    Site,
    TextContext,
    VisionTokens,
)

BY = ("attention", "score")


@dataclass(frozen=True)
class HoloV(Method):
    """Share the budget by runs of the picture, by attention and variety; inside a run keep what CLS
    attends to most [1].

    The tokens, in reading order, are cut into `crops` near-equal runs. A token scores its attention
    plus `beta` times the variance of its cosines with the rest of its run, that variance scaled to
    the mean attention of the run. A run gets tokens in proportion to its mean score, rounded down;
    what is left goes one by one to the runs of highest score. Attention is that of the layer the
    VLM reads; where there is no CLS (SigLIP, Qwen-VL), the mean of all tokens' to each.

    crops: how many runs.
    beta: weight of the variance.
    by: what ranks inside a run: "attention", as released, or the "score".

    As the released code has it; the paper was read by its abstract alone. Of that code: a token's
    own place counts in its variance as a cosine of 0. Since the variance is scaled to the run's
    attention, a run's mean score is (1 + beta) times its mean attention: with by="attention" the
    variance decides nothing. Differs from it: what runs cannot hold goes to others, where the code
    leaves empty tokens.

    Raises `ConfigError` for no runs or a negative `beta`, `UnknownNameError` for another `by`.

    [1] Don't Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context
    Retention (HoloV), arXiv 2510.02912.
    """

    site: ClassVar[Site] = Site.EMBEDS
    paper: ClassVar[str | None] = "HoloV, arXiv 2510.02912"

    crops: int = option(16, low=1, high=4096)
    beta: float = option(0.09, low=0, high=1e6)
    by: str = option("attention", choices=BY)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        valid_BL = vision.valid_BL
        attention_BL = vision.signal("attention").float().masked_fill(~valid_BL, 0)
        run_BL = run_of(valid_BL, self.crops)
        size_BR = sums_of_runs(valid_BL.float(), run_BL, self.crops)
        score_BL = attention_BL
        if self.beta:
            variance_BL = _variance(vision.tokens, run_BL, size_BR)
            looked_BR = sums_of_runs(attention_BL, run_BL, self.crops)
            varied_BR = sums_of_runs(variance_BL, run_BL, self.crops)
            scale_BR = looked_BR / varied_BR.clamp_min(1e-12)
            score_BL = attention_BL + self.beta * variance_BL * _at(scale_BR, run_BL)
        mean_BR = sums_of_runs(score_BL, run_BL, self.crops) / size_BR.clamp_min(1)
        given_BR = spend_on_runs(mean_BR, size_BR.long(), counts)
        rank_BL = attention_BL if self.by == "attention" else score_BL
        kept_BL = torch.zeros_like(valid_BL)
        for run in range(self.crops):
            kept_BL |= topk_mask(rank_BL, given_BR[:, run], run_BL == run)
        return Reduction(kept_BL)


def _at(values_BR: Tensor, run_BL: Tensor) -> Float[Tensor, "B L"]:
    """Of each token the value of its run; of padding that of the last."""
    return values_BR.gather(1, run_BL.clamp(max=values_BR.shape[1] - 1))


def _variance(
    tokens_BLC: Float[Tensor, "B L C"], run_BL: Tensor, size_BR: Float[Tensor, "B R"]
) -> Float[Tensor, "B L"]:
    """Of a token's cosines with the others of its run about their mean, its own counted as 0; a run
    of one varies by nothing."""
    R = size_BR.shape[1]
    unit_BLC = normalize(tokens_BLC.float().masked_fill((run_BL == R)[..., None], 0), dim=-1)
    out_BL = torch.zeros_like(unit_BLC[..., 0])
    for run in range(R):
        inside_BL = run_BL == run
        n_B1 = size_BR[:, run : run + 1]
        part_BLC = unit_BLC.masked_fill(~inside_BL[..., None], 0)
        at = inside_BL.any(0).nonzero()[:, 0]
        part_BPC = part_BLC[:, at]
        cosine_BPP = part_BPC @ part_BPC.mT
        cosine_BPP.diagonal(dim1=1, dim2=2).fill_(0)
        pair_BPP = inside_BL[:, at, None] & inside_BL[:, None, at]
        mean_BP = cosine_BPP.sum(-1) / (n_B1 - 1).clamp_min(1)
        off_BPP = (cosine_BPP - mean_BP[..., None]).masked_fill(~pair_BPP, 0)
        spread_BP = off_BPP.square().sum(-1) / (n_B1 - 1).clamp_min(1)
        out_BL[:, at] += spread_BP * (n_B1 > 1)
    return out_BL
