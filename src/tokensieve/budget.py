"""`keep` to token counts, by one rounding rule.

A fraction f of n tokens is round-half-up(f * n), at least one. A whole number of two or more is the
most tokens a picture keeps: one that has fewer keeps all. 1 and 1.0 both mean "all", because nobody
asks for a single token and everybody expects ``keep=1`` to change nothing.

Pools: a budget is spent over each crop evenly ("crop"), over all crops of a picture ("image"), or
over all pictures of a prompt ("prompt"). In the last two, crops compete token by token. A whole
number is a total: of a picture, with "prompt" of all pictures of a prompt together. A video is a
picture whose crops are its frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real

from tokensieve.errors import BudgetError, ConfigError
from tokensieve.fields import shown

EACH, TOGETHER = "each", "together"
EPS = 1e-9  # 0.29 * 100 is 28.999999999999996: do not let the float representation decide


class Pool(StrEnum):
    """Over what a budget is spent."""

    CROP = "crop"
    IMAGE = "image"
    PROMPT = "prompt"

    @property
    def total_of(self) -> str:
        """What a whole-number `keep` is a total of."""
        return "prompt" if self is Pool.PROMPT else "picture"


@dataclass(frozen=True)
class Spread:
    """Over what a budget is spent: of pictures by `pool`; of a video over "each" frame evenly, over
    all of it ("together") or over every N frames one after another. frames=None: as `pool` says,
    of whose crops the frames are some."""

    pool: Pool = Pool.CROP
    frames: str | int | None = None

    def window(self, frames: int) -> int | None:
        """How many of a video's frames compete for one budget; None: as crops of pictures do."""
        if self.frames is None:
            return None
        if isinstance(self.frames, int):
            return min(self.frames, frames)
        return 1 if self.frames == EACH else frames


def check_frames(frames: object) -> str | int | None:
    """Return `frames` as Spread takes it. Raises `ConfigError`."""
    if not isinstance(frames, bool) and isinstance(frames, Integral) and int(frames) >= 1:
        return int(frames)
    if frames is None or (isinstance(frames, str) and frames in (EACH, TOGETHER)):
        return frames
    raise ConfigError(
        f"Expected `frames` as '{EACH}', '{TOGETHER}' or a whole number of frames from 1, that "
        f"share a budget. Got {shown(frames)}."
    )


def check_keep(keep: object) -> float | int:
    """Return `keep` as a float fraction in (0, 1] or an int count >= 2.

    Raises `BudgetError` for anything else.
    """
    problem = "Expected `keep` as a fraction in (0, 1] or a whole number of tokens from 2."
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise BudgetError(f"{problem} Got {shown(keep)} ({type(keep).__name__}).")
    whole = int(keep) if isinstance(keep, Integral) else None
    if whole is not None and whole > 1:
        return whole
    value = float(keep) if whole is None else float(max(whole, -1))  # some are no floats
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(
            f"{problem} Got {shown(keep)}. To drop every visual token use method 'none'."
        )
    if value <= 1:
        return value
    raise BudgetError(f"{problem} Got {keep}. Did you mean {value / 100:g} or {round(value)}?")


def parse_keep(text: str) -> float | int:
    """A text as `check_keep` wants it: "3" a count, "0.3" a fraction. Raises `BudgetError`."""
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return check_keep(value)
    raise BudgetError(
        f"Expected `keep` as a fraction in (0, 1] or a whole number of tokens from 2. Got "
        f"'{text}'. Pass 0.25 or 64."
    )


def count(keep: float | int, total: int) -> int:
    """Tokens to keep of `total`: a count is the most, so all where there are fewer.

    Raises `BudgetError` for an invalid `keep`.
    """
    keep = check_keep(keep)
    if isinstance(keep, int):
        return min(keep, total)
    return min(total, max(1, math.floor(keep * total + 0.5 + EPS)))


def split_by_weight(total: int, weights: Sequence[float | int], sizes: Sequence[int]) -> list[int]:
    """`total` tokens over crops of `sizes` tokens in proportion to `weights`, spent exactly.

    At least one token a crop and no more than it has; what a full crop leaves goes to the others,
    again in proportion (the earlier crop on a tie).

    Raises `BudgetError` for a total that does not fit, `ConfigError` for weights that are none.
    """
    if not len(sizes) <= total <= sum(sizes):
        raise BudgetError(
            f"Expected {len(sizes)} to {sum(sizes)} tokens for {len(sizes)} crops. Got {total}."
        )
    if len(weights) != len(sizes) or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ConfigError(
            f"Expected {len(sizes)} weights of crops, none negative. Got {list(weights)}."
        )
    _, size_of = math.frexp(max(weights, default=0.0))  # powers of two: nothing is rounded
    weights = [math.ldexp(weight, -size_of) for weight in weights]
    floor = EPS * max(weights, default=0.0) or 1.0  # crops of no weight are filled last, evenly
    weights = [max(weight, floor) for weight in weights]
    scale = total / sum(weights)
    shares = [weight * scale for weight in weights]
    counts = [
        min(size, max(1, math.floor(share + EPS)))
        for share, size in zip(shares, sizes, strict=True)
    ]
    while (gap := total - sum(counts)) > 0:
        open_ = [i for i, size in enumerate(sizes) if counts[i] < size]
        worth = [weights[i] / (counts[i] + 0.5) for i in open_]
        counts[open_[worth.index(max(worth))]] += 1
    for _ in range(-gap):  # taken back where a crop is furthest above its share
        open_ = [i for i, n in enumerate(counts) if n > 1]
        excess = [(counts[i] - 0.5) / weights[i] for i in open_]
        counts[open_[excess.index(max(excess))]] -= 1
    return counts


def split_evenly(keep: float | int, sizes: list[int]) -> list[int]:
    """Tokens to keep of each crop of one picture, crops of `sizes` tokens, budget even.

    A fraction is taken of each crop. A count is the picture's total, shared in proportion to size,
    leftovers to the largest remainders (the earlier crop on a tie), at least one token a crop; one
    above what there is keeps all.

    Raises `BudgetError` for an invalid `keep`, or a count below one token per crop.
    """
    keep = check_keep(keep)
    if isinstance(keep, float):
        return [count(keep, size) for size in sizes]
    total = sum(sizes)
    target = count(keep, total)
    if target < len(sizes):
        raise BudgetError(
            f"Expected `keep` of at least {len(sizes)} tokens of a picture, one per crop. Got "
            f"{keep}. Pool the budget over the picture (pool='image'; over a video "
            "frames='together') or keep more."
        )
    shares = [target * size / total for size in sizes]
    counts = [max(1, math.floor(share + EPS)) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda i: counts[i] - shares[i])
    while (gap := target - sum(counts)) != 0:
        order = by_remainder if gap > 0 else by_remainder[::-1]
        for i in order:
            if gap > 0 and counts[i] < sizes[i]:
                counts[i], gap = counts[i] + 1, gap - 1
            elif gap < 0 and counts[i] > 1:
                counts[i], gap = counts[i] - 1, gap + 1
            if gap == 0:
                break
    return counts
