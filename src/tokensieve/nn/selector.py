"""The selector: learns which visual tokens cannot be told from the others.

B crops, L tokens, C encoder width; the last axis of logits is (drop, keep).
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokensieve.errors import EncoderMismatchError, NonFiniteError
from tokensieve.nn.config import SelectorConfig as SelectorConfig
from tokensieve.nn.config import StackConfig
from tokensieve.nn.pretrained import Pretrained
from tokensieve.nn.transformer import Stack
from tokensieve.types import Grids


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

    def under(self, **options: Any) -> Selector:
        """The same weights, not copied, under other options of the config; without thresholds,
        which were measured under the old ones, unless nothing differs."""
        config = replace(self.config, **options)
        if config == self.config:
            return self
        other = copy(self)
        other.config = replace(config, thresholds=())
        return other

    def at(self, device: torch.device) -> Selector:
        """This selector on `device`: moved only where it is elsewhere, since `to` walks over all
        modules to find that out."""
        return self if self.mean.device == device else self.to(device)

    def told(self) -> str:
        """By what it was trained; `surprise` is not the papers' objective."""
        by = self.config.trained_by
        if by is None:
            return "By which objective it was trained is not said."
        on_top = f" with `{' '.join(by.settings)}`" if by.settings else ""
        length = f", {by.steps:,} steps" if by.steps else ""
        return f"Trained by: {by}{on_top}{length}."

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
        grid: Grids | None = None,
    ) -> Float[Tensor, "B L 2"]:
        """Logits (drop, keep) of each token, from raw encoder features."""
        hidden = self.stack(self.standardise(features_BLC), valid_BL, grid)
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def scores(
        self,
        features_BLC: Float[Tensor, "B L C"],
        valid_BL: Bool[Tensor, "B L"] | None = None,
        grid: Grids | None = None,
    ) -> Float[Tensor, "B L"]:
        """Keep logit minus drop logit: the keep logit alone ranks worse.

        Without gradients the layers compute as `config.precision` says.
        """
        dtype, device = features_BLC.dtype, features_BLC.device.type
        auto = self.config.precision == "auto" and not torch.is_grad_enabled()
        half = auto and fast_in(device, dtype)
        with torch.autocast(device, dtype) if half else nullcontext():
            logits: Tensor = self(features_BLC, valid_BL, grid)
        logits = logits.float() if half else logits
        return logits[..., 1] - logits[..., 0]


@lru_cache
def fast_in(device: str, dtype: torch.dtype) -> bool:
    """Whether a type of device multiplies matrices faster in this half precision than in float32.

    A CPU without instructions for it takes up to 15 times as long.
    """
    if device == "cuda":
        exact = torch.cuda.is_bf16_supported(including_emulation=False)
        return dtype is torch.float16 or (dtype is torch.bfloat16 and exact)
    told = torch.cpu.get_capabilities() if device == "cpu" else {}
    names = ("avx512_bf16", "amx_bf16")
    return dtype is torch.bfloat16 and any(bool(told.get(name)) for name in names)
