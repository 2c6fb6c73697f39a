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

_PLACES = (3 / 32, 7 / 32, 16 / 32)  # behind blocks 2, 6 and 15
_PART = 1024  # tokens read at a time


@dataclass(frozen=True)
class SparseVLM(Method):
    """Keep the tokens that rating words attend to most, and recycle some of the others [1].

    Raters are the words behind the picture, which have seen it, of at least mean relevance: softmax
    over these words of the products of hidden states, mean over visual tokens. A token's
    significance is its mean attention from them, behind blocks 2, 6 and 15 of 32, counted from 0 as
    the paper does. Of the dropped, the most significant share `candidates` is clustered by density
    peaks into a share `recycled` as many tokens, each the sum of its cluster.

    How a budget meets the paper's rank: it would drop at most as many tokens as exceed the rank of
    the attention matrix of raters by tokens, a number that differs by layer. Here what remains of a
    stage is the budget, recycled tokens included, and the rank says how many of it stay as they are
    at least: recycling never takes the place of a token the rank speaks for. `keep` is what remains
    after the last of three stages.

    as_released: as the released code (v1.5): recycled tokens are the means of their clusters; of n
        candidates there are n // 10 + 1, and as many neighbours make their density; the rank has
        no say. Its noise of 1e-6 against ties is left out.
    plus: as SparseVLM+: attention is that of the half of the heads in which the words attend to
        the picture most, and nothing is recycled. Of its paper nothing could be read; this is what
        a port of its code does (14 of Qwen's 28 heads), but that heads are chosen by all words
        behind the picture and not by raters.

    Differs from paper and released code: raters are found anew at each stage; there, once, by the
    embeddings.
    Records of nano's first model were made with means of clusters, before blocks 2, 6 and 15.

    Raises `ConfigError` for shares outside [0, 1], `PromptError` for a prompt without text.

    [1] SparseVLM, arXiv 2410.04417.
    """

    site: ClassVar[Site] = Site.LLM
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str | None] = "SparseVLM, arXiv 2410.04417"

    candidates: float = 0.3
    recycled: float = 0.3
    as_released: bool = False
    plus: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.candidates <= 1 and 0 <= self.recycled <= 1):
            raise ConfigError(
                "Expected `candidates` and `recycled` in [0, 1]. Got "
                f"{self.candidates} and {self.recycled}."
            )

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int]:
        return geometric(depth, _PLACES, keep)

    def signals(self, encoder: EncoderInfo) -> dict[str, Signal]:
        return {"attention": Signal(Kind.TEXT_PRIORITY if self.plus else Kind.TEXT_ATTENTION)}

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
        if self.plus:
            return Reduction(topk_mask(significance_BL, counts, valid_BL))
        total_B = valid_BL.sum(-1)
        if self.as_released:
            direct_B = counts - self._released(counts, total_B)
        else:
            direct_B = self._direct(counts, total_B, rank_of(rated_BLT))
        direct_BL = topk_mask(significance_BL, direct_B, valid_BL)
        pool_B = self._pool(total_B - direct_B).maximum(counts - direct_B)
        pool_BL = topk_mask(significance_BL, pool_B, valid_BL & ~direct_BL)
        near = int((counts - direct_B).max()) if self.as_released else 5
        centre_BL, target_BL = _clustered(vision.tokens, pool_BL, counts - direct_B, near)
        tokens_BLC = mean_at(vision.tokens, target_BL)
        if not self.as_released:
            size_BL = torch.zeros_like(target_BL).scatter_add(
                1, target_BL.clamp_min(0), (target_BL >= 0).long()
            )
            tokens_BLC = torch.where(
                centre_BL[..., None], tokens_BLC * size_BL[..., None], tokens_BLC
            ).to(vision.tokens.dtype)
        return Reduction(direct_BL | centre_BL, tokens_BLC)

    def _pool(self, rest_B: Tensor) -> Int[Tensor, "B"]:
        """How many of the dropped may be recycled."""
        if self.as_released:
            return torch.minimum(rounded_share(rest_B, self.candidates, "down") + 1, rest_B)
        return rounded_share(rest_B, self.candidates, "up")

    def _released(self, counts: Tensor, total_B: Tensor) -> Int[Tensor, "B"]:
        """How many are recycled so that with the others it is `counts`."""
        recycled_B = torch.zeros_like(counts)
        for _ in range(3):  # more recycled, more dropped, more recycled: soon at rest
            rest_B = total_B - counts + recycled_B
            recycled_B = torch.minimum(self._pool(rest_B) // 10 + (rest_B > 0).long(), counts)
        return recycled_B

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
    tokens_BLC: Tensor, pool_BL: Bool[Tensor, "B L"], counts_B: Int[Tensor, "B"], near: int
) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Cluster the pool: centres, and the centre each pooled token joins, -1 for all others."""
    at_BP, real_BP = positions(pool_BL)
    taken_BPC = tokens_BLC.gather(1, at_BP[..., None].expand(-1, -1, tokens_BLC.shape[-1]))
    centre_BP, assign_BP = density_peaks(taken_BPC, counts_B, real_BP, max(near, 1))
    target_BP = at_BP.gather(1, assign_BP.clamp_min(0)).masked_fill(assign_BP < 0, -1)
    centre_BL = torch.zeros_like(pool_BL).scatter(1, at_BP, centre_BP)
    target_BL = torch.full_like(pool_BL, -1, dtype=torch.long)
    return centre_BL, target_BL.scatter(1, at_BP, target_BP)
