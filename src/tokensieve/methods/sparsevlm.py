"""Words that matter to the picture rate its tokens; the best of the dropped ones are recycled.

B crops, L tokens, T text tokens, P candidates for recycling, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.budget import EPS
from tokensieve.errors import ConfigError
from tokensieve.functional.counts import rounded_share
from tokensieve.functional.density import density_peaks
from tokensieve.functional.merge import mean_at
from tokensieve.functional.places import positions
from tokensieve.functional.text import text_attention, text_embeds
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method
from tokensieve.schedules.base import geometric
from tokensieve.types import EncoderInfo, Kind, Reduction, Signal, Site, TextContext, VisionTokens

_PLACES = (2 / 32, 6 / 32, 15 / 32)
_PART = 1024  # tokens read at a time


@dataclass(frozen=True)
class SparseVLM(Method):
    """Keep the tokens that rating words attend to most, and recycle some of the others [1].

    Raters are the words behind the picture, which have seen it, of at least mean relevance: softmax
    over these words of the products of hidden states, mean over visual tokens. A token's
    significance is its mean attention from them. Of the dropped, the most significant share
    `candidates` is clustered by density peaks into a share `recycled` as many tokens, each the mean
    of its cluster.

    How a budget meets the paper's rank: it would drop at most as many tokens as exceed the rank of
    the attention matrix of raters by tokens, a number that differs by layer. Here what remains of a
    stage is the budget, recycled tokens included, and the rank says how many of it stay as they are
    at least: recycling never takes the place of a token the rank speaks for. `keep` is what remains
    after the last of three stages.

    Differs from the paper: raters are found anew at each stage; clusters are averaged, not summed,
    so that recycled tokens are as large as the others.

    Raises `ConfigError` for shares outside [0, 1], `PromptError` for a prompt without text.

    [1] SparseVLM, arXiv 2410.04417.
    """

    site: ClassVar[Site] = Site.LLM
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "SparseVLM, arXiv 2410.04417"

    candidates: float = 0.3
    recycled: float = 0.3

    def __post_init__(self) -> None:
        if not (0 <= self.candidates <= 1 and 0 <= self.recycled <= 1):
            raise ConfigError(
                "Expected `candidates` and `recycled` in [0, 1]. Got "
                f"{self.candidates} and {self.recycled}."
            )

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.TEXT_ATTENTION)}

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        vision.require_finite(f"the site '{self.site}'")
        valid_BL, embeds_TD = vision.valid_BL, text_embeds(text, vision)
        rater_BT = raters(vision.tokens, embeds_TD, valid_BL)
        rated_BLT = text_attention(vision).masked_fill(
            ~(rater_BT[:, None] & valid_BL[..., None]), 0
        )
        significance_BL = rated_BLT.sum(-1) / rater_BT.sum(-1)[:, None]
        direct_B = self._direct(counts, valid_BL.sum(-1), rank_of(rated_BLT))
        direct_BL = topk_mask(significance_BL, direct_B, valid_BL)
        rest_B = valid_BL.sum(-1) - direct_B
        pool_B = rounded_share(rest_B, self.candidates, "up").maximum(counts - direct_B)
        pool_BL = topk_mask(significance_BL, pool_B, valid_BL & ~direct_BL)
        centre_BL, target_BL = _clustered(vision.tokens, pool_BL, counts - direct_B)
        return Reduction(direct_BL | centre_BL, mean_at(vision.tokens, target_BL))

    def _direct(self, counts: Tensor, total_B: Tensor, rank_B: Tensor) -> Int[Tensor, "B"]:
        """How many tokens stay as they are, so that with the recycled ones it is `counts`."""
        share = self.candidates * self.recycled
        if share == 1:
            return counts.where(counts == total_B, torch.minimum(rank_B, counts))
        wanted_B = ((counts - share * total_B.double()) / (1 - share) - EPS).ceil().long()
        return torch.minimum(torch.maximum(wanted_B, rank_B), counts)


def raters(
    tokens_BLC: Float[Tensor, "B L C"],
    embeds_TC: Float[Tensor, "T C"],
    valid_BL: Bool[Tensor, "B L"],
) -> Bool[Tensor, "B T"]:
    """Text tokens whose relevance to a crop is at least the mean; there is always one."""
    parts = [part @ embeds_TC.mT for part in map(Tensor.float, torch.split(tokens_BLC, _PART, 1))]
    relevance_BLT = torch.cat(parts, 1).softmax(-1).masked_fill(~valid_BL[..., None], 0)
    relevance_BT = relevance_BLT.sum(1) / valid_BL.sum(-1).clamp(1)[:, None]
    mean_B1 = relevance_BT.mean(-1, keepdim=True)
    return relevance_BT >= torch.minimum(mean_B1, relevance_BT.amax(-1, keepdim=True))


def rank_of(rows_BLT: Float[Tensor, "B L T"]) -> Int[Tensor, "B"]:
    """Rank of each matrix to float32's precision, by the T x T products of its columns."""
    wide = rows_BLT.double()
    values_BT = torch.linalg.eigvalsh(wide.mT @ wide)
    precision = torch.finfo(torch.float32).eps * max(rows_BLT.shape[1:])
    least_B1 = precision**2 * values_BT[:, -1:]
    big_BT: Tensor = (values_BT > least_B1) & (values_BT > 0)
    return big_BT.sum(-1)


def _clustered(
    tokens_BLC: Tensor, pool_BL: Bool[Tensor, "B L"], counts_B: Int[Tensor, "B"]
) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Cluster the pool: centres, and the centre each pooled token joins, -1 for all others."""
    at_BP, real_BP = positions(pool_BL)
    taken_BPC = tokens_BLC.gather(1, at_BP[..., None].expand(-1, -1, tokens_BLC.shape[-1]))
    centre_BP, assign_BP = density_peaks(taken_BPC, counts_B, real_BP)
    target_BP = at_BP.gather(1, assign_BP.clamp_min(0)).masked_fill(assign_BP < 0, -1)
    centre_BL = torch.zeros_like(pool_BL).scatter(1, at_BP, centre_BP)
    target_BL = torch.full_like(pool_BL, -1, dtype=torch.long)
    return centre_BL, target_BL.scatter(1, at_BP, target_BP)
