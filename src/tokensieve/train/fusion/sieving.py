"""The sieve that a training runs under, so that a VLM learns to read what is left.

What a step reads follows from seed and step: a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tokensieve.errors import ConfigError
from tokensieve.hf.asked import Asked
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.plan import Plan
from tokensieve.hf.sieve import sieve
from tokensieve.methods.base import Method
from tokensieve.train.batches import generator_of
from tokensieve.train.fusion.budgets import Keep, SieveConfig, part_of
from tokensieve.train.fusion.recipe import Recipe
from tokensieve.types import Site

_PART = 4  # of a step's chance: what a method draws


@dataclass
class Sieving:
    """A sieve for each step of one training on one model.

    checkpointing: whether the LLM's layers run twice. seen, read: visual tokens of the pictures of
    the step at work, and those that the LLM read.

    Raises what a sieve raises for a method, a layer or a budget that the model cannot do, and
    `ConfigError` where layers would run without it the second time.
    """

    model: Any
    config: SieveConfig
    seed: int
    steps: int
    checkpointing: bool = False
    step: int = -1
    seen: int = 0
    read: int = 0
    method: Method = field(init=False)

    def __post_init__(self) -> None:
        self.method = self.config.chosen
        for keep in self.config.budgets.ends:
            for layer in self.config.layers:
                asked = Asked(self.method, keep, self.config.positions, layer=layer)
                if Plan.of(self.model, asked).stages and self.checkpointing:
                    raise ConfigError(
                        f"Expected train.checkpointing=false for '{self.config.method}', which "
                        "leaves tokens out inside the LLM: its layers would run a second time "
                        "without that. Got true."
                    )
        if self.method.site is not Site.LLM and self.config.layer is None:
            self.method = self.method.bind(encoder_info(self.model))  # weights are read once

    @classmethod
    def of(cls, model: Any, recipe: Recipe, seed: int, steps: int) -> Sieving | None:
        """That of a recipe; None where it has none."""
        if recipe.sieve.method is None:
            return None
        return cls(model, recipe.sieve, seed, steps, recipe.train.checkpointing)

    def keep(self, step: int) -> Keep:
        """The budget of a step."""
        return self.config.budgets.at(self.seed, step, self.steps)

    def layer(self, step: int) -> int | None:
        """The layer of the LLM at which tokens go in a step."""
        layers = self.config.layers
        return layers[part_of(step, self.steps, len(layers))]

    @contextmanager
    def at(self, step: int, inputs: Mapping[str, Any]) -> Iterator[None]:
        """While open, the model reads what this step leaves it of `inputs`, a batch."""
        if step != self.step:
            self.step, self.seen, self.read = step, 0, 0
        places = inputs["input_ids"] == self.model.config.image_token_id
        if not bool((places & inputs["attention_mask"].bool()).any()):
            yield  # its picture lies in the padding, where nothing is read
            return
        method: Any = self.method
        if method.stochastic:  # else a picture would show the same tokens in every pass
            drawn = generator_of(self.seed, step, _PART)
            method = replace(method, seed=drawn.initial_seed() % 2**31)
        with sieve(
            self.model, method, self.keep(step), layer=self.layer(step),
            positions=self.config.positions, history=1,
        ) as report:  # fmt: skip
            yield
        self.seen += report.visual_tokens
        self.read += report.kept_tokens

    def told(self, step: int) -> dict[str, Any]:
        """What log.jsonl says of a step: its budget, and the share of tokens that were read."""
        share = round(self.read / self.seen, 4) if step == self.step and self.seen else None
        return {"keep": self.keep(step), "read": share}
