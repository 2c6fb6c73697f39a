"""The selector: learns which visual tokens cannot be told from the others.

B crops, L tokens, C encoder width; the last axis of logits is (drop, keep).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokensieve.errors import EncoderMismatchError, NonFiniteError
from tokensieve.functional.diversity import crowd_sizes, weighted_diversity
from tokensieve.functional.gate import gated_mask
from tokensieve.functional.topk import topk_mask
from tokensieve.nn.config import SelectorConfig as SelectorConfig
from tokensieve.nn.config import StackConfig
from tokensieve.nn.pretrained import Pretrained
from tokensieve.nn.transformer import Stack


class Selector(Pretrained[SelectorConfig]):
    """Transformer layers over visual tokens, then a linear head to two logits per token.

    The selector of [1] and its follow-up [2], for features or embeddings (`config.encoder.site`).
    Tokens marked invalid are neither read nor attended to.

    [1] When Less is Enough, arXiv 2503.16660.
    [2] Adaptive Vision Token Selection for Multi-modal Inference (its follow-up).
    """

    config_class: ClassVar[type[StackConfig]] = SelectorConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__()
        self.config = config
        self.stack = Stack(config, config.positions)
        self.norm = nn.LayerNorm(config.stack_width)
        self.head = nn.Linear(config.stack_width, 2)
        self.register_buffer("mean", torch.zeros(config.encoder.width))
        self.register_buffer("std", torch.ones(config.encoder.width))

    def standardise(self, features_BLC: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        """Features as the selector reads them, in its dtype.

        Raises `EncoderMismatchError` for another width.
        """
        C = self.config.encoder.width
        if features_BLC.shape[-1] != C:
            raise EncoderMismatchError(
                f"Expected features of width {C}, for which this selector was trained. Got "
                f"{features_BLC.shape[-1]}. Use weights trained for this encoder."
            )
        features = features_BLC.to(self.mean.dtype)
        return (features - self.mean) / self.std

    def restore(self, standard_BLC: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        """Features from standardised ones."""
        return standard_BLC * self.std + self.mean

    @torch.no_grad()
    def fit_normaliser(self, features_NLC: Float[Tensor, "N L C"]) -> None:
        """Store mean and std per dimension of a sample of features; nothing for "none".

        Raises `NonFiniteError` if the sample holds NaN or Inf.
        """
        if not bool(torch.isfinite(features_NLC).all()):
            raise NonFiniteError("Expected finite features to train on. Got NaN or Inf.")
        if self.config.normalise == "none":
            return
        flat = features_NLC.to(torch.float32).flatten(0, 1)
        self.mean.copy_(flat.mean(0))
        self.std.copy_(flat.std(0).clamp_min(1e-4))  # a dead dimension must not blow up

    def forward(
        self,
        features_BLC: Float[Tensor, "B L C"],
        valid_BL: Bool[Tensor, "B L"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "B L 2"]:
        """Logits (drop, keep) of each token, from raw encoder features."""
        hidden = self.stack(self.standardise(features_BLC), valid_BL, grid)
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def choose(
        self,
        tokens_BLC: Float[Tensor, "B L C"],
        scores_BL: Float[Tensor, "B L"],
        counts_B: Int[Tensor, "B"],
        valid_BL: Bool[Tensor, "B L"],
        rule: str | None = None,
    ) -> Bool[Tensor, "B L"]:
        """Which `counts` tokens stay, by `rule` (None: the config's; see `SelectorConfig.rule`)."""
        rule = rule or self.config.rule
        if rule == "top":
            return topk_mask(scores_BL, counts_B, valid_BL)
        if rule == "gated":
            return gated_mask(scores_BL, self.standardise(tokens_BLC), counts_B, valid_BL)
        even_BLC = tokens_BLC / self.std
        alike_BL = crowd_sizes(even_BLC, valid_BL, self.config.radius)
        weight_BL = self.config.trust * scores_BL + self.config.crowd * alike_BL.log()
        return weighted_diversity(even_BLC, weight_BL, counts_B, valid_BL)

    def scores(
        self,
        features_BLC: Float[Tensor, "B L C"],
        valid_BL: Bool[Tensor, "B L"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "B L"]:
        """Keep logit minus drop logit: the keep logit alone ranks worse."""
        logits: Tensor = self(features_BLC, valid_BL, grid)
        return logits[..., 1] - logits[..., 0]
