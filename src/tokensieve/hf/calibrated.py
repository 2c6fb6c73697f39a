"""`keep="auto"`: how much to keep was measured on questions of the user's, with a guarantee.

A file of `tokensieve calibrate` says for a model and a method the smallest keep whose answers were
shown to agree with those of all tokens. It holds for questions like those it was measured on; what
their pictures look like is in the file too, and pictures that stop looking so are told.

D width of a visual token; N pictures.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from tokensieve.errors import ConfigError
from tokensieve.fields import as_fields, check_names, read_object, shown
from tokensieve.files import write_text
from tokensieve.hf.families.fingerprint import state_hash

logger = logging.getLogger("tokensieve")
AUTO, ALL = "auto", "all"
RECENT, UNUSUAL, ALLOWED = 50, 0.05, 9  # of 50 pictures 9 or more as rare as 1 in 20: chance .001


@dataclass(frozen=True)
class Tried:
    """One keep: of how many questions how many answers differed from those of all tokens, and the
    probability of so few if more than the allowed share of all questions did."""

    keep: float | int
    asked: int
    differed: int
    chance: float


@dataclass(frozen=True)
class Look:
    """How the pictures look that were measured: mean and spread (D,) of the mean visual token of a
    picture, and their distances (N,) from it, ascending."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    distances: tuple[float, ...]

    @classmethod
    def of(cls, means_ND: Float[Tensor, "N D"]) -> Look:
        """Of pictures by their mean tokens. Each is measured against the others' mean."""
        N = len(means_ND)
        mean_D, spread_D = means_ND.mean(0), means_ND.std(0).clamp_min(1e-6)
        apart = ((means_ND - mean_D) / spread_D).square().mean(-1).sqrt() * (N / max(1, N - 1))
        return cls(tuple(mean_D.tolist()), tuple(spread_D.tolist()), tuple(sorted(apart.tolist())))

    def rare(self, mean_D: Float[Tensor, "D"]) -> float:
        """Share of the measured pictures that look as unusual as this one, itself counted."""
        centre, spread = (torch.tensor(part) for part in (self.mean, self.spread))
        apart = float(((mean_D.float().cpu() - centre) / spread).square().mean().sqrt())
        further = len(self.distances) - bisect_left(self.distances, apart)
        return (further + 1) / (len(self.distances) + 1)


@dataclass(frozen=True)
class Calibration:
    """What a file of `tokensieve calibrate` says.

    plan: positions, pool and options of the method, as text. weights: hash of the model's.
    keep: by group of questions, the smallest keep that holds there. tried: by group, in the order
    tested: largest keep first. sure: it holds where answers less sure are asked again with all
    tokens, by `tokensieve.evaluate.again.ask_until_sure`.
    """

    method: str
    plan: Mapping[str, str]
    weights: str
    max_loss: float
    confidence: float
    keep: Mapping[str, float | int]
    tried: Mapping[str, Sequence[Tried]]
    look: Look | None = None
    sure: float | None = None

    def to_file(self, file: str | Path) -> None:
        """Write it as JSON. Raises `ConfigError` where the disk refuses."""
        write_text(file, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> Calibration:
        """Raises `ConfigError` for a file that is not there or no calibration."""
        raw = read_object(Path(file), "a calibration")
        try:
            tried = {
                group: tuple(Tried(**as_fields(Tried, one)) for one in found)
                for group, found in raw["tried"].items()
            }
            look = None if raw["look"] is None else Look(**as_fields(Look, raw["look"]))
            return cls(**{**raw, "tried": tried, "look": look})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"Expected a calibration of `tokensieve calibrate` in {file}. Got another file: "
                f"{error}. Make it again."
            ) from error

    def keep_for(self, group: str = ALL) -> float | int:
        """The keep of a group. Raises `UnknownNameError` for one that was not measured."""
        check_names("group of the calibration", [group], self.keep)
        return self.keep[group]

    def check(
        self, model: Any, method: str, plan: Mapping[str, str], *, again: bool = False
    ) -> None:
        """Raise `ConfigError` unless it was measured for this model, method and plan.

        again: whether unsure answers are asked again.
        """
        if (self.sure is not None) != again:
            only = "asked again when unsure" if self.sure is not None else "asked once"
            raise ConfigError(
                f"Expected a calibration of answers as they are given here. Got one of answers "
                f"{only}. A sieve asks once; tokensieve.evaluate.again.ask_until_sure asks again, "
                "for which calibrate with --sure."
            )
        if method != self.method:
            raise ConfigError(
                f"Expected the method '{self.method}', which was calibrated. Got '{method}'."
            )
        differ = sorted(k for k in {*plan, *self.plan} if plan.get(k) != self.plan.get(k))
        if differ:
            raise ConfigError(
                f"Expected the settings of the calibration. Got another {', '.join(differ)}: "
                f"{shown({k: plan.get(k) for k in differ})} instead of "
                f"{shown({k: self.plan.get(k) for k in differ})}. Calibrate with these."
            )
        if weights_of(model) != self.weights:
            raise ConfigError(
                "Expected the model that was calibrated, in the same dtype. Got other weights. Run "
                "tokensieve calibrate for it."
            )


_HASHES: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def weights_of(model: Any) -> str:
    """Hash of a model's weights, taken again only once they were written to."""
    written = sum(one._version for one in model.state_dict(keep_vars=True).values())
    if _HASHES.get(model, (None, ""))[0] != written:
        _HASHES[model] = written, state_hash(model)
    return _HASHES[model][1]


@dataclass
class Watch:
    """Looks at every picture that goes by; tells, once, that they look like others."""

    look: Look
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    told: bool = False
    _lock: Lock = field(default_factory=Lock)

    def see(self, images: Sequence[Tensor]) -> None:
        """images: (N, D) visual tokens of each picture."""
        rare = [self.look.rare(rows.float().mean(0)) <= UNUSUAL for rows in images if len(rows)]
        with self._lock:
            self.recent.extend(rare)
            if self.told or sum(self.recent) < ALLOWED:
                return
            self.told = True
        logger.warning(
            "Expected pictures like those of the calibration. Got %d of the last %d as unusual as "
            "1 in %d of them. What it promises may not hold; run tokensieve calibrate on these.",
            sum(self.recent), len(self.recent), round(1 / UNUSUAL),
        )  # fmt: skip
