"""The trained selector inside the LLM, where visual tokens know what was asked.

B crops, L tokens, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokensieve.errors import (
    EncoderMismatchError,
    UnsupportedError,
    WeightsError,
)
from tokensieve.fields import option
from tokensieve.methods.base import ScoringMethod, TrainedFor, keep_all
from tokensieve.nn.config import CHOICES
from tokensieve.nn.ranking import choose, neighbours
from tokensieve.nn.selector import Selector
from tokensieve.types import EncoderInfo, Reduction, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Conditional(ScoringMethod):
    """Keep what a selector of hidden states says, from a layer of the LLM on [1].

    The selector is trained on the hidden states that enter a decoder layer; from there on only the
    tokens it ranks highest remain. A causal LLM reads in order: visual tokens are aware of the
    question only if it stands *before* the picture, so prompts are question + image + question
    (`tokensieve ask --ask-first`, `tokensieve.hf.prompt.template.ask_first`). With the question
    behind the picture alone the choice cannot depend on it, and a sieve says so in a warning.

    weights: a folder, a hub name or a loaded `Selector`; there is none that fits every LLM. They
        say which LLM and which layer they are for.
    rule: "top" ranks; "diverse" and "gated" as of the method "selector"; None: the weights'.

    The paper keeps "only question-relevant tokens after the middle layer", the question standing on
    both sides of the picture. Differs from it: the layer is the weights', and how many tokens
    remain is the budget's; the paper says neither. It released no code for it.

    Raises `WeightsError` where weights are missing or broken, `EncoderMismatchError` where they are
    for another LLM, layer or site.

    [1] Adaptive Vision Token Selection for Multi-modal Inference, appendix (the follow-up of When
    Less is Enough, arXiv 2503.16660).
    """

    site: ClassVar[Site] = Site.LLM
    trained: ClassVar[bool] = True
    conditional: ClassVar[bool] = True
    paper: ClassVar[str | None] = "Adaptive Vision Token Selection for Multi-modal Inference"

    weights: str | Path | Selector | None = None
    rule: str | None = option(None, choices=CHOICES["rule"])

    def llm_stages(self, depth: int, keep: float | int) -> Mapping[int, float | int] | None:
        """The layer the weights are for."""
        return {self._load().config.encoder.layer: keep}

    def bind(self, encoder: EncoderInfo) -> Conditional:
        selector = self._load()
        selector.config.encoder.require_same_output(encoder, owner="This selector")
        return Conditional(selector, self.rule)

    def trained_for(self) -> TrainedFor | None:
        if not isinstance(self.weights, Selector):
            return None
        # no hash: nobody keeps one of an LLM's weights
        return TrainedFor(self.weights.source or "this selector", self.site, (),
                          self.weights.config.training, self.weights.config)  # fmt: skip

    @torch.no_grad()
    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        vision.require_finite(f"the site '{self.site}'")
        return self._bound(vision).scores(vision.tokens, vision.valid, vision.grid)

    def reduce(
        self, vision: VisionTokens, counts: Int[Tensor, "B"], text: TextContext | None = None
    ) -> Reduction:
        if bool((counts >= vision.valid_BL.sum(-1)).all()):
            vision.require_finite(f"the site '{self.site}'")
            return Reduction(keep_all(vision))
        scores_BL, selector = self.scores(vision, text), self._bound(vision)
        near = neighbours(vision.grid, vision.tokens)
        kept = choose(selector, vision.tokens, scores_BL, counts, vision.valid_BL, self.rule, near)
        return Reduction(kept)

    def _bound(self, vision: VisionTokens) -> Selector:
        if isinstance(self.weights, Selector):
            return self.weights.at(vision.tokens.device)
        raise UnsupportedError("Expected a method bound to an LLM. Call bind(llm_info) first.")

    def _load(self) -> Selector:
        if self.weights is None:
            raise WeightsError(
                "Expected `weights` of a selector trained on hidden states of this LLM. Got none. "
                "Pass weights=FOLDER, or train them (docs/guides/train.md)."
            )
        selector = self.weights
        if not isinstance(selector, Selector):
            selector = Selector.from_pretrained(selector)
        if (site := selector.config.encoder.site) is not Site.LLM:
            raise EncoderMismatchError(
                f"Expected weights for the site 'llm'. Got some for '{site}'. Use the method "
                "'selector' for them."
            )
        return selector
