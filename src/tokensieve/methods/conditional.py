"""The trained selector inside the LLM, where visual tokens know what was asked.

B crops, L tokens, D width of the LLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import EncoderMismatchError, UnsupportedError, WeightsError
from tokensieve.methods.base import ScoringMethod
from tokensieve.nn.selector import Selector
from tokensieve.types import EncoderInfo, Site, TextContext, VisionTokens


@dataclass(frozen=True)
class Conditional(ScoringMethod):
    """Keep what a selector of hidden states says, from a layer of the LLM on [1].

    The selector is trained on the hidden states that enter a decoder layer; from there on only the
    tokens it ranks highest remain. A causal LLM reads in order: visual tokens are aware of the
    question only if it stands *before* the picture, so prompts are question + image + question
    (`tokensieve.hf.prompts.ask_first` builds them). With the question behind the picture alone
    the choice cannot depend on it.

    weights: a folder, a hub name or a loaded `Selector`; there is none that fits every LLM. They
        say which LLM and which layer they are for.

    Raises `WeightsError` where weights are missing or broken, `EncoderMismatchError` where they are
    for another LLM, layer or site.

    [1] Adaptive Vision Token Selection for Multi-modal Inference, appendix (the follow-up of When
    Less is Enough, arXiv 2503.16660).
    """

    site: ClassVar[Site] = Site.LLM
    trained: ClassVar[bool] = True
    paper: ClassVar[str | None] = "Adaptive Vision Token Selection for Multi-modal Inference"

    weights: str | Path | Selector | None = None

    @property
    def llm_layer(self) -> int | None:
        """The layer the weights are for."""
        return None if self.weights is None else self._load().config.encoder.layer

    def bind(self, encoder: EncoderInfo) -> Conditional:
        selector = self._load()
        selector.config.encoder.require_same_output(encoder, owner="This selector")
        return Conditional(selector)

    @torch.no_grad()
    def scores(self, vision: VisionTokens, text: TextContext | None = None) -> Float[Tensor, "B L"]:
        vision.require_finite(f"the site '{self.site}'")
        if not isinstance(self.weights, Selector):
            raise UnsupportedError("Expected a method bound to an LLM. Call bind(llm_info) first.")
        selector = self.weights.to(vision.tokens.device)
        return selector.scores(vision.tokens, vision.valid, vision.grid)

    def _load(self) -> Selector:
        if self.weights is None:
            raise WeightsError(
                "Expected `weights` of a selector trained on hidden states of this LLM. Got none. "
                "Pass weights=FOLDER, or train them (docs/conditional.md)."
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
