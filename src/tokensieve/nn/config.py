"""Options of the trained modules. One string per field is its documentation and its CLI help."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tokensieve.errors import ConfigError
from tokensieve.fields import as_fields, check_fields, option
from tokensieve.functional.counts import SHARES
from tokensieve.types import EncoderInfo

CHOICES = {
    "positions": ("none", "learned", "sincos"),
    "normalise": ("standardise", "none"),
    "rule": ("top", "gated", "diverse"),
    "precision": ("auto", "float32"),
    "estimator": ("explore", "gumbel", "straight-through", "soft-topk"),
    "objective": ("surprise", "when-less-is-enough", "adaptive", "plain"),
    "reduction": ("rms", "l2", "mse", "sample-l2"),
    "error": ("cosine", "square"),
    "budget": ("batch", "picture"),
    "kind": ("fusion", "concat", "avgpool", "mlp", "swiglu", "quecc"),
    "form": ("paper", "release"),
    "depths": ("p-mod", "mod"),
}


ConfigT = TypeVar("ConfigT", bound="Config")  # not Self: beartype sees methods one by one


class Config:
    """Checks choices and sizes, and goes to JSON and back. Base of the dataclasses below."""

    def __post_init__(self) -> None:
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The config of `to_dict`. Raises `ConfigError` for a field it does not have."""
        return cls(**as_fields(cls, values))


def encoder_from_dict(values: Any) -> EncoderInfo:
    """An `EncoderInfo` read from JSON. Raises `ConfigError` where fields are missing or unknown."""
    return EncoderInfo(**as_fields(EncoderInfo, values))


@dataclass(frozen=True)
class StackConfig(Config):
    """Sizes shared by selector and reconstructor: a stack of pre-norm Transformer layers."""

    encoder: EncoderInfo = option(text="The encoder whose features are read.")
    depth: int = option(3, "Transformer layers.", low=1, high=256)
    width: int | None = option(None, "Width of the layers. None: the encoder's.", low=1, high=2**16)
    heads: int | None = option(None, "Attention heads. None: the encoder's.", low=1, high=2**12)
    ffn: int | None = option(
        None, "Width of the feed-forward part. None: the encoder's.", low=1, high=2**18
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stack_heads < 1 or self.stack_ffn < 1 or self.stack_width < 1:
            raise ConfigError(
                "Expected an encoder of known width, heads and ffn, or those of the layers. Got "
                f"{self.encoder}. Set width, heads and ffn."
            )
        if self.stack_width % self.stack_heads:
            raise ConfigError(
                f"Expected `heads` to divide the width {self.stack_width}. Got {self.stack_heads}."
            )

    @property
    def stack_width(self) -> int:
        """Width of the layers."""
        return self.width or self.encoder.width

    @property
    def stack_heads(self) -> int:
        """Attention heads of a layer."""
        return self.heads or self.encoder.heads

    @property
    def stack_ffn(self) -> int:
        """Width of the feed-forward part."""
        return self.ffn or self.encoder.ffn


WHOSE = {
    "surprise": "ours, not the papers'",
    "when-less-is-enough": "arXiv 2503.16660",
    "adaptive": "Adaptive Vision Token Selection",
    "plain": "the papers' plain mask term",
}


@dataclass(frozen=True)
class TrainedBy(Config):
    """How a selector's weights came about, for people: nothing is computed from it."""

    objective: str = option(
        text="What training minimised: one of `objective.objective`.", choices=CHOICES["objective"]
    )
    estimator: str = option(
        text="How masks were drawn: one of `objective.estimator`.", choices=CHOICES["estimator"]
    )
    preset: str = option("", "The preset it began with; empty: not said.")
    settings: tuple[str, ...] = option((), "What was set on top, as `section.field=value`.")
    steps: int | None = option(None, "Optimiser steps.", low=1)
    crops: int | None = option(None, "Crops there were to learn from.", low=1)
    seed: int | None = option(None, "Seed of the training.", low=0)

    def __str__(self) -> str:
        preset = f", preset {self.preset}" if self.preset else ""
        whose = WHOSE[self.objective]
        return f"objective {self.objective} ({whose}), estimator {self.estimator}{preset}"


@dataclass(frozen=True)
class SelectorConfig(StackConfig):
    """The selector: which tokens are worth keeping."""

    positions: str = option(
        "none", "Position embedding: none, learned (fixed grid) or sincos.",
        choices=CHOICES["positions"],
    )  # fmt: skip
    normalise: str = option(
        "standardise", "Features: standardise (stored mean and std per dimension) or none."
    )
    rule: str = option(
        "top",
        "Inference: top (highest scores), gated (cover the picture where scores are flat) or "
        "diverse (expected error times distance to what is kept times tokens alike; for scores "
        "trained by surprise).",
        choices=CHOICES["rule"],
    )
    trust: float = option(
        1.75, "diverse: exponent of the expected error; 0: distances alone, large: top.", low=0
    )
    crowd: float = option(
        0.5, "diverse: exponent of the number of tokens that look alike; 0: each counts as one.",
        low=0,
    )  # fmt: skip
    radius: float = option(
        0.3, "diverse: cosine distance below which tokens look alike.", over=0, high=2
    )
    words: float = option(
        0.0, "diverse: a token beside a kept one comes before one that is worth up to 1 + this "
        "times as much, less where that one has many alike: words stay whole; 0: never.", low=0,
    )  # fmt: skip
    precision: str = option(
        "auto",
        "Inference: the layers compute in half precision where the tokens are in it and the device "
        "is fast in it (auto), or always in float32.",
        choices=CHOICES["precision"],
    )
    thresholds: tuple[float, ...] = option(
        (), "What a token must be worth, by share kept on average; measured by `calibrate`."
    )
    encoder_weights: tuple[tuple[str, str], ...] = option(
        (), "Hashes of the weights of the encoder trained for, by dtype; told by the features."
    )
    trained_by: TrainedBy | None = option(
        None, "Objective, estimator and recipe of the weights; none: not said."
    )

    @property
    def training(self) -> str:
        """How the weights were trained, in words."""
        return "not said" if self.trained_by is None else str(self.trained_by)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(got := self.thresholds) in (0, len(SHARES)):
            return
        raise ConfigError(
            f"Expected `thresholds` as {len(SHARES)} numbers, or none. Got {len(got)}. Leave "
            "them out and measure them: python -m tokensieve.train.calibration.selector --help."
        )


@dataclass(frozen=True)
class ReconstructorConfig(StackConfig):
    """The feature reconstructor: what the kept tokens say about the dropped ones."""

    positions: str = option(
        "learned", "Position embedding: none, learned (fixed grid) or sincos.",
        choices=CHOICES["positions"],
    )  # fmt: skip
    image_depth: int = option(
        0, "Layers of the image reconstructor; 0: none (paper 2 uses 2).", low=0, high=64
    )
    image_width: int = option(
        64, "Channels of the image reconstructor's first upsampling stage.", low=1, high=2**14
    )
    patch: int = option(
        0, "Pixels along a token's side; needed by the image reconstructor.", low=0, high=2**10
    )


@dataclass(frozen=True)
class ObjectiveConfig(Config):
    """What training minimises and how it samples the mask."""

    estimator: str = option(
        "explore",
        "Mask: gumbel (hard, noisy), straight-through (no noise), soft-topk (noisy), or explore "
        "(three in ten pictures at random, the rest near the ranking; no gradient, for surprise).",
        choices=CHOICES["estimator"],
    )
    tau: float = option(1.0, "Temperature of the estimator; higher is softer.", over=0)
    topk_low: float = option(
        0.05, "soft-topk, explore: smallest share kept, drawn per picture.", low=0, high=1
    )
    topk_high: float = option(
        0.5, "soft-topk, explore: largest share kept, drawn per picture.", low=0, high=1
    )
    objective: str = option(
        "surprise",
        "Mask term: when-less-is-enough: a1 max(L,p); adaptive: a1 max(L,p) - a2 min(L,q); "
        "plain: a1 L; L is the mean of the mask. surprise: no mask term; the score learns the log "
        "of a dropped token's error, weighted by a1.",
        choices=CHOICES["objective"],
    )
    error: str = option(
        "cosine", "surprise: a token's error is its cosine distance or its mean square.",
        choices=CHOICES["error"],
    )  # fmt: skip
    reduction: str = option(
        "rms", "Norm of the reconstruction error: rms, l2 (per token), mse, sample-l2 (literal).",
        choices=CHOICES["reduction"],
    )  # fmt: skip
    p: float = option(
        0.3, "Share of kept tokens below which dropping more earns nothing.", low=0, high=1
    )
    q: float = option(
        0.1, "adaptive: share of kept tokens up to which keeping more is rewarded.", low=0, high=1
    )
    a1: float = option(1.0, "Weight of the mask term.")
    a2: float = option(0.1, "adaptive: weight of the reward for keeping up to q.")
    budget: str = option(
        "batch", "L is the mean over the batch, or over each picture.", choices=CHOICES["budget"]
    )
    image_weight: float = option(1.0, "Weight of the image reconstruction error.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "explore" and self.objective != "surprise":
            raise ConfigError(
                f"Expected an estimator with a gradient for the objective '{self.objective}'. Got "
                "'explore', which has none. Use gumbel, straight-through or soft-topk."
            )
        if self.topk_low > self.topk_high:
            raise ConfigError(
                f"Expected topk_low <= topk_high. Got {self.topk_low} and {self.topk_high}."
            )
