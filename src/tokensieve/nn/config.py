"""Options of the trained modules. One string per field is its documentation and its CLI help."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.functional.counts import SHARES
from tokensieve.types import EncoderInfo, Site

CHOICES = {
    "positions": ("none", "learned", "sincos"),
    "normalise": ("standardise", "none"),
    "rule": ("top", "gated", "diverse"),
    "estimator": ("explore", "gumbel", "straight-through", "soft-topk"),
    "objective": ("surprise", "when-less-is-enough", "adaptive", "plain"),
    "reduction": ("rms", "l2", "mse", "sample-l2"),
    "error": ("cosine", "square"),
    "budget": ("batch", "picture"),
    "kind": ("fusion", "concat", "avgpool", "mlp"),
    "form": ("paper", "release"),
}


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and the one string that describes it."""
    return field(default=default, metadata={"help": text})


ConfigT = TypeVar("ConfigT", bound="Config")  # not Self: beartype sees methods one by one


class Config:
    """Checks choices and sizes, and goes to JSON and back. Base of the dataclasses below."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            got = getattr(self, name, choices[0])
            if got not in choices:
                raise UnknownNameError.of(name, str(got), choices)
        for name in ("depth", "width", "heads", "ffn"):
            size = getattr(self, name, None)
            if size is not None and size < 1:
                raise ConfigError(f"Expected `{name}` of at least 1. Got {size}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The config of `to_dict`. Raises `ConfigError` for a field it does not have."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                raise UnknownNameError.of(f"{cls.__name__} field", name, known)
        values = dict(values)
        if isinstance(values.get("encoder"), Mapping):
            values["encoder"] = encoder_from_dict(values["encoder"])
        if isinstance(values.get("thresholds"), list):  # as JSON has it
            values["thresholds"] = tuple(values["thresholds"])
        return cls(**values)


def encoder_from_dict(values: Mapping[str, Any]) -> EncoderInfo:
    """An `EncoderInfo` read from JSON. Raises `ConfigError` where fields are missing or unknown."""
    grid = values.get("grid")
    try:
        typed = {
            "grid": None if grid is None else (grid[0], grid[1]),
            "site": Site(values.get("site", Site.FEATURES)),
        }
        return EncoderInfo(**{**values, **typed})
    except ConfigError:
        raise
    except (TypeError, IndexError, ValueError) as error:
        wanted = ", ".join(f.name for f in dataclasses.fields(EncoderInfo))
        raise ConfigError(f"Expected an encoder with {wanted}. Got {dict(values)}.") from error


@dataclass(frozen=True)
class StackConfig(Config):
    """Sizes shared by selector and reconstructor: a stack of pre-norm Transformer layers."""

    encoder: EncoderInfo = field(metadata={"help": "The encoder whose features are read."})
    depth: int = option(3, "Transformer layers.")
    width: int | None = option(None, "Width of the layers. None: the encoder's.")
    heads: int | None = option(None, "Attention heads. None: the encoder's.")
    ffn: int | None = option(None, "Width of the feed-forward part. None: the encoder's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.encoder, EncoderInfo):
            raise ConfigError(f"Expected `encoder` as an EncoderInfo. Got {self.encoder!r}.")
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


@dataclass(frozen=True)
class SelectorConfig(StackConfig):
    """The selector: which tokens are worth keeping."""

    positions: str = option("none", "Position embedding: none, learned (fixed grid) or sincos.")
    normalise: str = option(
        "standardise", "Features: standardise (stored mean and std per dimension) or none."
    )
    rule: str = option(
        "top",
        "Inference: top (highest scores), gated (cover the picture where scores are flat) or "
        "diverse (expected error times distance to what is kept times tokens alike; for scores "
        "trained by surprise).",
    )
    trust: float = option(
        1.75, "diverse: exponent of the expected error; 0: distances alone, large: top."
    )
    crowd: float = option(
        0.5, "diverse: exponent of the number of tokens that look alike; 0: each counts as one."
    )
    radius: float = option(0.3, "diverse: cosine distance below which tokens look alike.")
    thresholds: tuple[float, ...] = option(
        (), "What a token must be worth, by share kept on average; measured by `calibrate`."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.radius <= 2:
            raise ConfigError(f"Expected `radius` in (0, 2]. Got {self.radius}.")
        for name in ("trust", "crowd"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"Expected `{name}` of 0 or more. Got {value}.")
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        got = self.thresholds
        numbers = isinstance(got, tuple) and all(isinstance(t, int | float) for t in got)
        if numbers and (not got or (len(got) == len(SHARES) and all(map(math.isfinite, got)))):
            return
        raise ConfigError(
            f"Expected `thresholds` as {len(SHARES)} finite numbers, or none. Got {got}. Leave "
            "them out and measure them: python -m tokensieve.train.calibrate --help."
        )


@dataclass(frozen=True)
class ReconstructorConfig(StackConfig):
    """The feature reconstructor: what the kept tokens say about the dropped ones."""

    positions: str = option("learned", "Position embedding: none, learned (fixed grid) or sincos.")
    image_depth: int = option(0, "Layers of the image reconstructor; 0: none (paper 2 uses 2).")
    image_width: int = option(64, "Channels of the image reconstructor's first upsampling stage.")
    patch: int = option(0, "Pixels along a token's side; needed by the image reconstructor.")


@dataclass(frozen=True)
class ObjectiveConfig(Config):
    """What training minimises and how it samples the mask."""

    estimator: str = option(
        "explore",
        "Mask: gumbel (hard, noisy), straight-through (no noise), soft-topk (noisy), or explore "
        "(three in ten pictures at random, the rest near the ranking; no gradient, for surprise).",
    )
    tau: float = option(1.0, "Temperature of the estimator; higher is softer.")
    topk_low: float = option(0.05, "soft-topk, explore: smallest share kept, drawn per picture.")
    topk_high: float = option(0.5, "soft-topk, explore: largest share kept, drawn per picture.")
    objective: str = option(
        "surprise",
        "Mask term: when-less-is-enough: a1 max(L,p); adaptive: a1 max(L,p) - a2 min(L,q); "
        "plain: a1 L; L is the mean of the mask. surprise: no mask term; the score learns the log "
        "of a dropped token's error, weighted by a1.",
    )
    error: str = option(
        "cosine", "surprise: a token's error is its cosine distance or its mean square."
    )
    reduction: str = option(
        "rms", "Norm of the reconstruction error: rms, l2 (per token), mse, sample-l2 (literal)."
    )
    p: float = option(0.3, "Share of kept tokens below which dropping more earns nothing.")
    q: float = option(0.1, "adaptive: share of kept tokens up to which keeping more is rewarded.")
    a1: float = option(1.0, "Weight of the mask term.")
    a2: float = option(0.1, "adaptive: weight of the reward for keeping up to q.")
    budget: str = option("batch", "L is the mean over the batch, or over each picture.")
    image_weight: float = option(1.0, "Weight of the image reconstruction error.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "explore" and self.objective != "surprise":
            raise ConfigError(
                f"Expected an estimator with a gradient for the objective '{self.objective}'. Got "
                "'explore', which has none. Use gumbel, straight-through or soft-topk."
            )
        if not self.tau > 0:
            raise ConfigError(f"Expected `tau` above 0. Got {self.tau}.")
        for name in ("p", "q", "topk_low", "topk_high"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ConfigError(f"Expected `{name}` in [0, 1]. Got {share}.")
        if self.topk_low > self.topk_high:
            raise ConfigError(
                f"Expected topk_low <= topk_high. Got {self.topk_low} and {self.topk_high}."
            )
