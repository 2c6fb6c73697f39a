"""Small methods to test the sieve with, independent of the registry."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokensieve.methods.base import Method, ScoringMethod, keep_none
from tokensieve.types import Reduction, Site


@dataclass(frozen=True)
class ByNorm(ScoringMethod):
    """Keep rows of largest norm, as the LLM gets them."""

    site = Site.EMBEDS

    def scores(self, vision, text=None):
        return vision.tokens.float().norm(dim=-1)


@dataclass(frozen=True)
class ByFeatureNorm(ByNorm):
    """The same on encoder features."""

    site = Site.FEATURES


@dataclass(frozen=True)
class ByVariance(ByNorm):
    """Keep tokens over lively pixels."""

    needs = frozenset({"pixels"})

    def scores(self, vision, text=None):
        return vision.patches.var(-1)


@dataclass(frozen=True)
class ByText(ByNorm):
    """Keep tokens like the prompt's text."""

    needs = frozenset({"text"})

    def scores(self, vision, text=None):
        return vision.tokens.float() @ text.embeds.float().mean(0)


@dataclass(frozen=True)
class Doubled(ByNorm):
    """Keep by norm, and double what is kept."""

    def reduce(self, vision, counts, text=None):
        kept = super().reduce(vision, counts, text).kept
        return Reduction(kept, tokens=vision.tokens * 2)


@dataclass(frozen=True)
class RolledFeatures(ByNorm):
    """Keep by norm, and roll the channels of what is kept (projectors may undo a scale)."""

    site = Site.FEATURES

    def reduce(self, vision, counts, text=None):
        return Reduction(super().reduce(vision, counts, text).kept, vision.tokens.roll(1, -1))


@dataclass(frozen=True)
class Unchanged(ByFeatureNorm):
    """New tokens that are the old ones: what the projector makes of them must be the same."""

    def reduce(self, vision, counts, text=None):
        return Reduction(super().reduce(vision, counts, text).kept, tokens=vision.tokens.clone())


@dataclass(frozen=True)
class Poisoned(ByNorm):
    """Goes wrong in the middle."""

    def scores(self, vision, text=None):
        raise RuntimeError("poisoned")


@dataclass(frozen=True)
class Blind(Method):
    """No picture at all."""

    site = Site.EMBEDS
    reads_picture = False

    def reduce(self, vision, counts, text=None):
        return Reduction(keep_none(vision))


@dataclass(frozen=True)
class Ragged(ByNorm):
    """Another number of tokens for every crop, whatever was asked."""

    exact = False

    def reduce(self, vision, counts, text=None):
        ragged = counts - torch.tensor(vision.keys, device=counts.device) % 3
        return super().reduce(vision, ragged.clamp(min=1), text)


@dataclass(frozen=True)
class Smaller(Method):
    """A picture of as many rows, with half the columns or fewer."""

    site = Site.PIXELS
    exact = False

    def target_grid(self, grid, count):
        columns = count // grid[0]
        return (grid[0], columns) if columns else (1, min(count, grid[1]))

    def reduce(self, vision, counts, text=None):
        raise NotImplementedError


@dataclass(frozen=True)
class Peek(ByNorm):
    """Remembers what it was shown."""

    seen: list = None

    def scores(self, vision, text=None):
        self.seen.append(vision)
        return super().scores(vision, text)


@dataclass(frozen=True)
class PeekFeatures(Peek):
    """The same on encoder features."""

    site = Site.FEATURES


@dataclass(frozen=True)
class Inside(ByNorm):
    """Keep hidden states of largest norm."""

    site = Site.LLM


@dataclass(frozen=True)
class InsideRagged(Ragged):
    """Another number of tokens for every crop, inside the LLM."""

    site = Site.LLM


@dataclass(frozen=True)
class InsideDoubled(Doubled):
    """Keep hidden states by norm, and double what is kept."""

    site = Site.LLM


@dataclass(frozen=True)
class InsidePoisoned(Poisoned):
    """Goes wrong in the middle of the LLM."""

    site = Site.LLM


@dataclass(frozen=True)
class InsidePeek(Peek):
    """Remembers hidden states and text it was shown."""

    site = Site.LLM
    needs = frozenset({"text"})

    def scores(self, vision, text=None):
        self.seen.append((vision, text))
        return vision.tokens.float().norm(dim=-1)
