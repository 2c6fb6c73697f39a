"""Adaptive counts that keep their word: what a stream keeps on average is what was asked.

A method with adaptive counts was calibrated on pictures of one mix; on another mix its average is
another. Here every call is asked for a little more or less than the caller asked, by what the
pictures before it owe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from tokensieve.budget import Pool
from tokensieve.errors import ConfigError
from tokensieve.hf.report import PromptReport
from tokensieve.methods.base import Method

# A method gives from half to twice what it is asked: twice reaches any mix, more pays back.
FURTHEST = math.log(2.5)
SOON = 8  # pictures over which what is owed is paid back; of larger calls, two of them


@dataclass
class Steady:
    """The running correction of one stream, shared by its threads.

    keep: as the caller asked. owed: pictures' budgets kept too few so far (too many: below 0).
    learned: of this mix, the logarithm of what to ask for over `keep`. most: pictures of the
    largest call.
    """

    keep: float | int
    pool: Pool = Pool.CROP
    owed: float = 0.0
    learned: float = 0.0
    most: int = 1
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def of(
        cls, name: str, method: Method, keep: float | int, pool: Pool, *, inside: bool,
        calibrated: bool,
    ) -> Steady:  # fmt: skip
        """inside: tokens are dropped inside the LLM. calibrated: `keep` was said by a calibration.

        Raises `ConfigError` for either, and for a method whose counts are no average.
        """
        problem = ""
        if not method.on_average:
            problem = f"'{name}', whose counts are as asked"
        elif inside:
            problem = f"'{name}' with `layer`"
        elif calibrated:
            problem = "a calibration, which holds for counts without a correction"
        if problem:
            raise ConfigError(
                "Expected steady=True beside a method with adaptive counts before the LLM, 'dymu' "
                f"or 'selector' with counts='adaptive'. Got {problem}. Leave it out."
            )
        return cls(keep, pool)

    @property
    def now(self) -> float | int:
        """What the next call is to be asked for, from `keep` / 2.5 to 2.5 times `keep`."""
        with self._lock:
            by = _within(self.learned + self.owed / self._over)
        if isinstance(self.keep, int):
            return max(2, round(self.keep * math.exp(by)))
        return min(1.0, self.keep * math.exp(by))

    def saw(self, prompts: Sequence[PromptReport]) -> None:
        """Count what a call kept. What is owed is paid back whole; what was learned of the mix
        keeps it from being owed again."""
        pairs = [pair for pair in map(self._asked_and_kept, prompts) if pair[0]]
        if not pairs:
            return
        number, asked = len(pairs), sum(one for one, _ in pairs)
        with self._lock:
            self.most = max(self.most, number)
            self.owed += number * (1 - sum(kept for _, kept in pairs) / asked)
            self.learned = _within(self.learned + number * self.owed / (2 * self._over**2))

    @property
    def _over(self) -> int:
        """Pictures over which what is owed is paid back."""
        return max(SOON, 2 * self.most)

    def _asked_and_kept(self, prompt: PromptReport) -> tuple[float, int]:
        """Of the pictures of a prompt."""
        crops = [[(int(crop.valid.sum()), len(crop.kept)) for crop in image.crops]
                 for image in prompt.images]  # fmt: skip
        sizes = [sum(size for size, _ in image) for image in crops]
        kept = sum(kept for image in crops for _, kept in image)
        if isinstance(self.keep, float):
            return self.keep * sum(sizes), kept
        if self.pool is Pool.PROMPT:
            return min(self.keep, sum(sizes)), kept
        return sum(min(self.keep, size) for size in sizes), kept


def _within(by: float) -> float:
    return min(max(by, -FURTHEST), FURTHEST)
