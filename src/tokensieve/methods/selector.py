"""The trained selector: keep what cannot be told from the rest.

B crops, L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokensieve.errors import NonFiniteError, UnsupportedError, WeightsError
from tokensieve.fields import option
from tokensieve.functional.counts import (
    adaptive_counts,
    largest_counts,
    mask_counts,
    threshold_at,
)
from tokensieve.functional.grid import beside
from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import ScoringMethod, TrainedFor, as_one, keep_all, split_groups
from tokensieve.nn.config import CHOICES
from tokensieve.nn.ranking import choose, neighbours, ranked
from tokensieve.nn.selector import Selector
from tokensieve.nn.shipped import load_selector, shipped_selector
from tokensieve.types import EncoderInfo, Reduction, Site, TextContext, VisionTokens

COUNTS = ("fixed", "mask", "adaptive")


@dataclass(frozen=True)
class LearnedSelection(ScoringMethod):
    """Keep what a trained selector says cannot be told from the other tokens [1]. The weights that
    ship learned it by `surprise`, an objective of this project, not by the paper's.

    A token's score is the keep logit minus the drop logit. By which objective and estimator weights
    were trained they say themselves: `trained_by` of their config, and of the report of a sieve;
    weights of before that was kept say "not said".

    weights: a folder, a hub name, a loaded `Selector`, or the name of other weights that ship for
        the encoder, such as those trained by a paper's objective; None: the default ones.
    rule: "top" ranks; "diverse" takes each time the token of the largest expected error times
        distance to what is kept times number of tokens alike (powers of them, in the weights'
        config); "gated" covers the picture where the scores are flat, as on calm scenes; None: the
        rule stored with the weights.
    counts: "fixed" keeps as many tokens as asked; "mask" those whose keep logit is above their drop
        logit [1], one or more, and no more than asked (for weights trained by a mask objective);
        "adaptive" reads a budget as an average over pictures like those trained on: a picture
        keeps tokens until the rule's next one is worth less than a threshold stored with the
        weights, from half to twice as many as asked.
    words: "diverse": a token left or right of a kept one comes before another that is worth up to
        1 + `words` times as much, less the more tokens are like that one: words stay whole, and a
        sky or a wall still gets its token. 0: never; None: as stored with the weights. Tokens
        without a grid have no neighbours.

    At keep 1 all tokens stay, whatever `counts` says. Weights say whether they read the encoder's
    features or the embeddings behind the projector.

    Raises `WeightsError` or `EncoderMismatchError` from `bind` where weights do not fit.

    [1] When Less is Enough, arXiv 2503.16660.
    """

    site: ClassVar[Site] = Site.FEATURES
    trained: ClassVar[bool] = True
    paper: ClassVar[str | None] = "When Less is Enough, arXiv 2503.16660"

    weights: str | Path | Selector | None = None
    rule: str | None = option(None, choices=CHOICES["rule"])
    counts: str = option("fixed", choices=COUNTS)
    words: float | None = option(None, low=0)

    def __post_init__(self) -> None:
        # An instance says of itself what its class says of the default.
        object.__setattr__(self, "exact", self.counts == "fixed")
        object.__setattr__(self, "on_average", self.counts == "adaptive")

    @classmethod
    def site_text(cls) -> str:
        return f"{Site.FEATURES} or {Site.EMBEDS}"

    def bind(self, encoder: EncoderInfo) -> LearnedSelection:
        selector = self.weights
        if selector is None:
            selector = shipped_selector(encoder)
        elif not isinstance(selector, Selector):
            selector = load_selector(selector, encoder)
        selector.config.encoder.require_same_output(encoder, owner="This selector")
        kind = (
            SelectionOfEmbeds if selector.config.encoder.site is Site.EMBEDS else LearnedSelection
        )
        if self.words is not None:
            selector = selector.under(words=self.words)
        bound = kind(selector, self.rule, self.counts, self.words)
        bound._require_counts()
        return bound

    def _require_counts(self) -> None:
        """Raise `WeightsError` where the weights cannot decide a count in the way asked for."""
        config = self.selector.config
        if self.counts == "mask" and config.rule == "diverse":
            raise WeightsError(
                "Expected weights with a mask for counts='mask'. Got weights that predict errors, "
                "whose sign says nothing. Use counts='adaptive', or train by a mask objective."
            )
        if self.counts != "adaptive":
            return
        if not config.thresholds and config.encoder.grid is None:
            raise UnsupportedError(
                "Expected an encoder whose crops have one grid, for counts='adaptive'. Got one "
                "whose grid varies with the picture. Use counts='fixed'."
            )
        if not config.thresholds:
            raise WeightsError(
                "Expected weights with thresholds for counts='adaptive'. Got none. Measure them "
                "on features of training pictures: "
                "python -m tokensieve.train.calibration.selector --help."
            )
        if self.chosen_rule != config.rule:
            raise WeightsError(
                f"Expected the rule '{config.rule}', for which the thresholds of these weights "
                f"were measured. Got '{self.chosen_rule}'. Calibrate for it: python -m "
                "tokensieve.train.calibration.selector --help."
            )

    def trained_for(self) -> TrainedFor | None:
        if not isinstance(self.weights, Selector):
            return None
        config = self.weights.config
        name = self.weights.source or "this selector"
        return TrainedFor(
            name, config.encoder.site, config.encoder_weights, config.training, config
        )

    @property
    def selector(self) -> Selector:
        """The bound selector. Raises `UnsupportedError` before `bind`."""
        if isinstance(self.weights, Selector):
            return self.weights
        raise UnsupportedError("Expected a method bound to an encoder. Call bind(encoder) first.")

    @torch.no_grad()
    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        tokens_BLC = vision.tokens
        selector = self.selector.at(tokens_BLC.device)
        scores_BL = selector.scores(tokens_BLC, vision.valid, vision.grid)
        if not bool((torch.isfinite(scores_BL) | ~vision.valid_BL).all()):
            vision.require_finite(f"the site '{self.site}'")  # NaN and Inf reach every score
            raise NonFiniteError(
                "Expected finite scores of finite tokens. Got NaN or Inf: they are too large for "
                f"these weights ({str(tokens_BLC.dtype).removeprefix('torch.')} tokens). Use "
                "weights trained on such tokens."
            )
        return scores_BL

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        if bool((counts >= vision.valid_BL.sum(-1)).all()):
            vision.require_finite(f"the site '{self.site}'")
            return Reduction(keep_all(vision))
        near = neighbours(vision.grid, vision.tokens)
        return Reduction(self._choose(vision, self.scores(vision, text), counts, near))

    def reduce_pool(
        self, groups: Sequence[VisionTokens], count: int, text: TextContext | None = None
    ) -> list[Reduction]:
        """All crops compete; "gated" shares out the budget by score and covers crop by crop. Words
        go on from tile to tile of a picture."""
        scores = [self.scores(group, text) for group in groups]
        flat_1L = torch.cat([s.flatten() for s in scores])[None]
        whole, counts_1 = as_one(groups), torch.tensor([count], device=flat_1L.device)
        if self.chosen_rule != "gated":
            near = _beside_of_all(groups)
            return split_groups(Reduction(self._choose(whole, flat_1L, counts_1, near)), groups)
        counts_1 = self._decided(whole, flat_1L, counts_1)
        best = topk_mask(flat_1L, counts_1, whole.valid_BL)[0]
        parts = torch.split(best, [s.numel() for s in scores])
        return [
            Reduction(self._choose_exactly(group, s, part.view_as(s).sum(-1)))
            for group, s, part in zip(groups, scores, parts, strict=True)
        ]

    @property
    def chosen_rule(self) -> str:
        """The rule asked for, or that of the weights."""
        return self.rule or self.selector.config.rule

    def _choose(
        self, vision: VisionTokens, scores_BL: Float[Tensor, "B L"], counts: Int[Tensor, "B"],
        beside_BL2: Int[Tensor, "B L 2"] | None = None,
    ) -> Bool[Tensor, "B L"]:  # fmt: skip
        counts = self._decided(vision, scores_BL, counts, beside_BL2)
        return self._choose_exactly(vision, scores_BL, counts, beside_BL2)

    def _decided(
        self, vision: VisionTokens, scores_BL: Float[Tensor, "B L"], counts: Int[Tensor, "B"],
        beside_BL2: Int[Tensor, "B L 2"] | None = None,
    ) -> Int[Tensor, "B"]:  # fmt: skip
        """How many tokens of each crop stay where `counts` were asked for."""
        valid_BL = vision.valid_BL
        if self.counts == "fixed":
            return counts
        if self.counts == "mask":
            return mask_counts(scores_BL, counts, valid_BL)
        steps = int(largest_counts(counts, valid_BL).max())
        _, worth_BK = ranked(
            self.selector, vision.tokens, scores_BL, valid_BL, self.chosen_rule, steps, beside_BL2
        )
        share_B = counts / valid_BL.sum(-1).clamp_min(1)
        threshold_B = threshold_at(self.selector.config.thresholds, share_B)
        return adaptive_counts(worth_BK, threshold_B, counts, valid_BL)

    def _choose_exactly(
        self, vision: VisionTokens, scores_BL: Float[Tensor, "B L"], counts: Int[Tensor, "B"],
        beside_BL2: Int[Tensor, "B L 2"] | None = None,
    ) -> Bool[Tensor, "B L"]:  # fmt: skip
        rule, valid_BL = self.chosen_rule, vision.valid_BL
        return choose(self.selector, vision.tokens, scores_BL, counts, valid_BL, rule, beside_BL2)


@dataclass(frozen=True)
class SelectionOfEmbeds(LearnedSelection):
    """The same behind the projector: what the LLM reads decides what cannot be told."""

    site: ClassVar[Site] = Site.EMBEDS


def _beside_of_all(groups: Sequence[VisionTokens]) -> Int[Tensor, "1 N 2"] | None:
    """Left and right of each token of `as_one(groups)`; None where no group has a grid."""
    parts, start = [], 0
    for group in groups:
        B, L, _ = group.tokens.shape
        if group.grid is None:
            part_N2 = torch.full((B * L, 2), -1)
        else:
            part_N2 = beside(group.grid, B, group.tiles)
        parts.append(torch.where(part_N2 < 0, part_N2, part_N2 + start))
        start += B * L
    if all(group.grid is None for group in groups):
        return None
    return torch.cat(parts)[None].to(groups[0].tokens.device)
