"""For each promise a method that breaks it and is caught: a check that cannot fail is a defect."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from method_checks import CHECKS, check_config_round_trip, require_promise
from torch import Tensor

from tokensieve.functional.topk import topk_mask
from tokensieve.methods.base import Method, ScoringMethod, split_groups
from tokensieve.methods.feature_norm import FeatureNorm
from tokensieve.types import Kind, Reduction, Signal, Site, VisionTokens


class Ranked(ScoringMethod):
    """A right method, for the broken ones to spoil."""

    site = Site.EMBEDS

    def scores(self, vision, text=None):
        return vision.tokens.float().nan_to_num(0.0)[..., 0]


class OneTooMany(Ranked):
    def reduce(self, vision, counts, text=None):
        return Reduction(topk_mask(self.scores(vision), counts + 1, vision.valid_BL))


class ThriceAtMost(Ranked):
    on_average = True
    exact = False

    def reduce(self, vision, counts, text=None):
        many = torch.minimum(3 * counts, vision.valid_BL.sum(-1))
        return Reduction(topk_mask(self.scores(vision), many, vision.valid_BL))


class AThirdAtLeast(ThriceAtMost):
    def reduce(self, vision, counts, text=None):
        few = torch.minimum((counts + 2) // 3, counts)
        return Reduction(topk_mask(self.scores(vision), few, vision.valid_BL))


class MoreThanAsked(OneTooMany):
    exact = False


class IntegerMask(Ranked):
    def reduce(self, vision, counts, text=None):
        kept = super().reduce(vision, counts).kept
        loose = object.__new__(Reduction)
        object.__setattr__(loose, "kept", kept.long())
        object.__setattr__(loose, "tokens", None)
        return loose


class ForgetsPadding(Ranked):
    def reduce(self, vision, counts, text=None):
        return Reduction(topk_mask(self.scores(vision), counts, torch.ones_like(vision.valid_BL)))


class AbsorbsIntoDropped(Ranked):
    def reduce(self, vision, counts, text=None):
        kept = super().reduce(vision, counts).kept
        own = torch.arange(kept.shape[1]).expand(kept.shape).clone()
        return Reduction(kept, vision.tokens, own.masked_fill(~vision.valid_BL, -1))


class RoundsValues(Ranked):
    def reduce(self, vision, counts, text=None):
        return Reduction(super().reduce(vision, counts).kept, vision.tokens * (1 + 1e-6))


class ComparesWithBatch(Ranked):
    def scores(self, vision, text=None):
        return (super().scores(vision) - vision.tokens[..., 0].nan_to_num(0).mean(0)).abs()


class ReadsPadding(Ranked):
    def scores(self, vision, text=None):
        s = super().scores(vision)
        return (s - s.mean(-1, keepdim=True)).abs()


class Float32Values(Ranked):
    def reduce(self, vision, counts, text=None):
        return Reduction(super().reduce(vision, counts).kept, vision.tokens.float())


class WritesInput(Ranked):
    def scores(self, vision, text=None):
        return vision.tokens.mul_(2)[..., 0]


class GlobalNoise(Ranked):
    def scores(self, vision, text=None):
        return torch.rand(vision.tokens.shape[:2])


@dataclass(frozen=True)
class IgnoresSeed(Ranked):
    stochastic = True
    seed: int = 0


class SwallowsNaN(Ranked):
    pass


class BelievesAnySignal(Ranked):
    """Reads a signal past the check that is in `vision.signal`."""

    def signals(self, encoder):
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def scores(self, vision, text=None):
        return vision.signals["attention"].nan_to_num(0.0)


class ForgetsSignalsOfPadding(Ranked):
    """Compares a token's attention with the mean, padding counted."""

    def signals(self, encoder):
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def scores(self, vision, text=None):
        attention = vision.signal("attention").float()
        return (attention - attention.mean(-1, keepdim=True)).abs()


class PeeksAtTokens(Ranked):
    reads_tokens = False


class PoolsWrongly(Ranked):
    def reduce_pool(self, groups, count, text=None):
        parts = super().reduce_pool(groups, count)
        return [Reduction(torch.ones_like(part.kept)) for part in parts]


BROKEN: list[tuple[str, type[Method]]] = [
    ("budget", OneTooMany),
    ("budget", ThriceAtMost),
    ("budget", AThirdAtLeast),
    ("budget", MoreThanAsked),
    ("shape", IntegerMask),
    ("valid_only", ForgetsPadding),
    ("partition", AbsorbsIntoDropped),
    ("identity", RoundsValues),
    ("alone_as_in_batch", ComparesWithBatch),
    ("padding", ReadsPadding),
    ("dtype", Float32Values),
    ("inputs_untouched", WritesInput),
    ("deterministic", GlobalNoise),
    ("deterministic", IgnoresSeed),
    ("nan", SwallowsNaN),
    ("nan", BelievesAnySignal),
    ("padding", ForgetsSignalsOfPadding),
    ("reads", PeeksAtTokens),
    ("pool", PoolsWrongly),
]


@pytest.mark.parametrize(("check", "broken"), BROKEN, ids=lambda v: getattr(v, "__name__", v))
def test_broken_method_is_caught(check: str, broken: type[Method]) -> None:
    with pytest.raises(AssertionError, match=f"^broken breaks the promise '{check}': "):
        require_promise("broken", {}, check, broken())


def test_every_promise_has_a_broken_method() -> None:
    assert {check for check, _ in BROKEN} == set(CHECKS)


def test_the_unspoiled_method_passes() -> None:
    for name, check in CHECKS.items():
        if name != "nan":
            check(Ranked())
    assert Ranked().budgeted


def test_config_that_loses_an_option_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    check_config_round_trip("feature-norm", FeatureNorm(largest=True))
    monkeypatch.setattr(FeatureNorm, "options", lambda self: {})
    with pytest.raises(AssertionError):
        check_config_round_trip("feature-norm", FeatureNorm(largest=True))


def test_split_groups_cuts_assignments_at_crops() -> None:
    groups = [VisionTokens(torch.zeros(2, 3, 1))]
    assign = torch.tensor([[0, 0, 3, 3, 3, 5]])
    whole = Reduction(torch.tensor([[1, 0, 0, 1, 0, 1]]).bool(), assign=assign)
    (part,) = split_groups(whole, groups)
    assert isinstance(part.assign, Tensor)
    assert part.assign.tolist() == [[0, 0, -1], [0, 0, 2]]
