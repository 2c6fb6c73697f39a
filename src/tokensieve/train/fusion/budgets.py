"""What a sieve leaves the LLM in each step of a training: drawn from seed and step alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from tokensieve.budget import parse_keep
from tokensieve.errors import ConfigError, UnsupportedError, did_you_mean
from tokensieve.fields import from_text, option, shown
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method, method_class
from tokensieve.nn.config import Config
from tokensieve.train.batches import generator_of

Keep = float | int
_PART = 3  # of a step's chance, which the order of rows and the weights' noise do not use
_MAY = 0.5  # any share below 1
_FORMS = (
    "Expected sieve.keep as a share or a number of tokens (0.25, 64), as all between two (0.1..1, "
    "16..64), as one of several (64,144,256), or such one after another (0.25>0.5>1)."
)


@dataclass(frozen=True)
class Draw:
    """The budgets of one stretch of a training.

    between: all between the first and the last of `given`; otherwise one of `given`. Each is as
    likely as any other.
    """

    given: tuple[Keep, ...]
    between: bool = False

    def at(self, seed: int, step: int) -> Keep:
        """The budget of a step."""
        if len(self.given) == 1:
            return self.given[0]
        generator = generator_of(seed, step, _PART)
        if not self.between:
            return self.given[int(torch.randint(len(self.given), (1,), generator=generator))]
        low, high = self.given
        if isinstance(low, int) and isinstance(high, int):
            return int(torch.randint(low, high + 1, (1,), generator=generator))
        drawn = float(torch.rand(1, generator=generator, dtype=torch.float64))
        return low + (high - low) * drawn


@dataclass(frozen=True)
class Budgets:
    """The budgets of a whole training, each `Draw` for an equal part of its steps."""

    draws: tuple[Draw, ...]

    def at(self, seed: int, step: int, steps: int) -> Keep:
        """The budget of step `step` of `steps`."""
        return self.draws[part_of(step, steps, len(self.draws))].at(seed, step)

    @property
    def ends(self) -> tuple[Keep, ...]:
        """The smallest and largest of each part: what a model has to be able to do."""
        return tuple(keep for draw in self.draws for keep in draw.given)

    @property
    def varies(self) -> bool:
        """Whether there is more than one budget."""
        return len(set(self.ends)) > 1


def part_of(step: int, steps: int, parts: int) -> int:
    """In which of so many equal parts of a training a step lies."""
    return min(step * parts // max(steps, 1), parts - 1)


def parse_budgets(text: str) -> Budgets:
    """What `sieve.keep` says. Raises `ConfigError` for another form, `BudgetError` for a number
    that is no budget."""
    return Budgets(tuple(_draw(part, text) for part in text.split(">")))


def _draw(part: str, whole: str) -> Draw:
    if ".." in part:
        ends = [parse_keep(end.strip()) for end in part.split("..")]
        if len(ends) != 2 or type(ends[0]) is not type(ends[1]):
            raise ConfigError(f"{_FORMS} Got {shown(whole)}. Give two shares, or two numbers.")
        if ends[0] > ends[1]:
            raise ConfigError(f"{_FORMS} Got {shown(whole)}. Put the smaller one first.")
        return Draw((ends[0], ends[1]), between=True)
    given = [end.strip() for end in part.split(",")]
    if not all(given):
        raise ConfigError(f"{_FORMS} Got {shown(whole)}.")
    return Draw(tuple(parse_keep(one) for one in given))


@dataclass(frozen=True)
class SieveConfig(Config):
    """Which visual tokens the LLM reads in training; those of all pictures where no method is."""

    method: str | None = option(
        None, "Method that leaves tokens out in training; none: all are read."
    )
    keep: str | None = option(
        None, "Budget of a step: 0.25 or 64; A..B: drawn anew each step; A,B,C: one of them; "
        "A>B>C: one after another in equal parts of the steps. none: the method needs none.",
    )  # fmt: skip
    layer: str | None = option(
        None, "Layer of the LLM from which on only kept tokens remain; A>B>none: one after another."
    )
    options: str = option("", "Options of the method, as name=value, commas between.")
    positions: str = option(
        "keep", "Positions of kept tokens: keep or renumber.", choices=("keep", "renumber")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is None:
            for one in ("keep", "layer", "options", "positions"):
                if getattr(self, one) != getattr(SieveConfig, one):
                    raise ConfigError(
                        f"Expected a method beside sieve.{one}={getattr(self, one)}. Got none. Set "
                        "sieve.method (--sieve NAME)."
                    )
            return
        if self.keep is None and method_class(self.method).budgeted:
            raise ConfigError(
                f"Expected a budget for '{self.method}'. Got none. Set sieve.keep (--keep 0.1..1)."
            )
        _ = self.budgets, self.layers, self.chosen  # what is wrong with them is told now

    @property
    def budgets(self) -> Budgets:
        """What `keep` says; of a method that keeps what it keeps, that it may."""
        return parse_budgets(str(_MAY) if self.keep is None else self.keep)

    @property
    def layers(self) -> tuple[int | None, ...]:
        """What `layer` says, for equal parts of the steps."""
        if self.layer is None:
            return (None,)
        parts = [part.strip() for part in self.layer.split(">")]
        if not all(part == "none" or part.isdecimal() for part in parts):
            raise ConfigError(
                "Expected sieve.layer as a layer's number, or numbers and 'none' one after another "
                f"(2>16>none). Got {shown(self.layer)}."
            )
        return tuple(None if part == "none" else int(part) for part in parts)

    @property
    def chosen(self) -> Method:
        """The method with its options."""
        if self.method is None:
            raise UnsupportedError("Expected a method. Got none. Set sieve.method.")
        cls = method_class(self.method)
        found: dict[str, Any] = {}
        known = [one.name for one in fields(cls)]
        for text in filter(None, (part.strip() for part in self.options.split(","))):
            name, equals, value = text.partition("=")
            if not equals or name not in known:
                raise ConfigError(
                    f"Expected sieve.options as name=value of {self.method}. Got {shown(text)}."
                    f"{did_you_mean(name, known)} Its options: {', '.join(known) or 'none'}."
                )
            found[name] = from_text(cls, name, value)
        return get_method(self.method, **found)
