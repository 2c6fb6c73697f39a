"""The project's own generated pictures as a source: the whole pipeline without a data set."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from tokensieve.data.pictures.decode import LIMITS, Limits
from tokensieve.data.synth import KINDS, ROTATION, SPLITS, generate
from tokensieve.errors import ConfigError, UnknownNameError


class GeneratedSource:
    """Pictures 0..count-1 of kinds in rotation; "mix" is the mix that nano learned from.

    Raises `ConfigError` for no pictures, `UnknownNameError` for a kind or split.
    """

    detail = ""

    def __init__(self, name: str, kinds: Sequence[str], count: int, split: str = "train") -> None:
        chosen = ROTATION if list(kinds) == ["mix"] else list(kinds)
        for kind in chosen:
            if kind not in KINDS:
                raise UnknownNameError.of("kind of picture", kind, [*KINDS, "mix"])
        if split not in SPLITS:
            raise UnknownNameError.of("split", split, SPLITS)
        if count < 1:
            raise ConfigError(f"Expected at least one generated picture. Got {count}.")
        self.name, self._split = name, split
        self._kinds = [chosen[i % len(chosen)] for i in range(count)]
        self.keys: Sequence[str] = [f"{split}/{kind}-{i:06d}" for i, kind in enumerate(self._kinds)]

    def content(self) -> str:
        """Nothing: the keys hold kinds and split, and those decide."""
        return ""

    def read(self, index: int, limits: Limits = LIMITS) -> Image.Image:
        """The picture, generated."""
        return generate(self._kinds[index], index, self._split).image
