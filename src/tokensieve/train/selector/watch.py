"""Notices a training that goes nowhere: a mask of one value, a loss that runs away."""

from __future__ import annotations

import math
from collections import deque

from tokensieve.errors import TrainingError


class CollapseWatch:
    """Notices a mask that stays all ones or all zeros, which ranks nothing.

    Raises `TrainingError` from `see` once `patience` steps in a row were so.
    """

    def __init__(self, patience: int) -> None:
        self.shares: deque[float] = deque(maxlen=patience)

    def see(self, kept: float) -> None:
        """Take the share of kept tokens of one step."""
        self.shares.append(kept)
        if len(self.shares) < (self.shares.maxlen or 1):
            return
        if min(self.shares) > 0.995:
            state, advice = "ones", "raise objective.a1 or use objective.reduction=rms"
        elif max(self.shares) < 0.005:
            state, advice = "zeros", "lower objective.a1 or set objective.p above 0"
        else:
            return
        raise TrainingError(
            f"Expected a mask that drops some tokens and keeps some. It was all {state} for "
            f"{len(self.shares)} steps: {advice}, or standardise features."
        )


class DivergenceWatch:
    """Notices a loss that is no number, or that stays far above where it has been.

    Raises `TrainingError` from `see` at once for NaN and Inf, and when the loss averaged over about
    `patience` steps is `factor` times the lowest such average.
    """

    def __init__(self, patience: int, factor: float = 5.0) -> None:
        self.patience, self.factor = patience, factor
        self.average, self.lowest, self.seen = 0.0, math.inf, 0

    def see(self, loss: float, step: int) -> None:
        """Take the loss of one step."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"Expected a finite loss. Got {loss} at step {step}. Check the features for NaN, "
                "or lower train.lr."
            )
        self.seen += 1
        share = 1 / min(self.seen, self.patience)
        self.average += share * (loss - self.average)
        if self.seen < self.patience:
            return
        if self.lowest > 0 and self.average > self.factor * self.lowest:
            raise TrainingError(
                f"Expected a loss that falls. It averages {self.average:.4g} at step {step}, "
                f"after {self.lowest:.4g}: lower train.lr, or raise train.warmup."
            )
        self.lowest = min(self.lowest, self.average)
