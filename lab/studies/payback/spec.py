"""What the suite of this study says besides: a variant "W x D" is a selector of that shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokensieve.errors import ConfigError
from tokensieve.evaluate.config import Suite
from tokensieve.nn.config import SelectorConfig
from tokensieve.types import EncoderInfo

HEAD = 16  # width of an attention head
BESIDE = "divprune"  # what choosing is held against
SHIPPED = "shipped"  # the row of the weights in the package
WORDS = 6.0  # as nano 2's selector has it


@dataclass(frozen=True)
class Shape:
    """A selector's layers: `depth` of them, `width` wide, heads of 16, a feed-forward part of two
    times the width."""

    width: int
    depth: int

    @property
    def name(self) -> str:
        """As the suite calls it."""
        return f"{self.width} x {self.depth}"

    def config(self, encoder: EncoderInfo) -> SelectorConfig:
        """Of a selector of this shape that chooses as ours do."""
        return SelectorConfig(
            encoder=encoder, rule="diverse", depth=self.depth, width=self.width,
            heads=max(1, self.width // HEAD), ffn=2 * self.width, words=WORDS,
        )  # fmt: skip

    def settings(self) -> list[str]:
        """For the trainer, as `section.field=value`."""
        return [f"selector.width={self.width}", f"selector.depth={self.depth}",
                f"selector.heads={max(1, self.width // HEAD)}",
                f"selector.ffn={2 * self.width}", f"selector.words={WORDS:g}"]  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One training: its shape, its seed, and where its weights go."""

    shape: Shape
    seed: int
    weights: Path


def shape_of(name: str) -> Shape | None:
    """The shape a variant's name says, or None where it is no shape."""
    found = re.fullmatch(r"(\d+) x (\d+)", name)
    return Shape(int(found[1]), int(found[2])) if found else None


def shapes(suite: Suite) -> list[Shape]:
    """Every shape of the suite, in its order. Raises `ConfigError` for none."""
    found = [s for v in suite.variants if (s := shape_of(v.name)) is not None]
    if not found:
        raise ConfigError(
            f"Expected variants named 'WIDTH x DEPTH' in the suite '{suite.suite}'. Got none."
        )
    return found


def trainings(suite: Suite) -> Iterator[Training]:
    """Every training of the suite. Raises `ConfigError` for a shape without weights."""
    for variant in suite.variants:
        if (shape := shape_of(variant.name)) is None:
            continue
        if "weights" not in variant.per_seed:
            raise ConfigError(f"Expected `weights` per seed for '{variant.name}'. Got none.")
        for seed, folder in enumerate(variant.per_seed["weights"]):
            yield Training(shape, seed, Path(folder))
