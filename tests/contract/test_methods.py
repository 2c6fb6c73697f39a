"""Every method of the registry keeps every promise."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from method_checks import (
    CHECKS,
    ENCODER,
    check_config_round_trip,
    require_promise,
    vision,
)

from tokensieve.errors import UnsupportedError
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.nn.config import CHOICES
from tokensieve.nn.ranking import calibrate
from tokensieve.nn.selector import Selector, SelectorConfig
from tokensieve.nn.thresholds import Thresholds
from tokensieve.types import EncoderInfo, Site

VARIANTS = [("feature-norm", {"largest": True}), ("random", {"seed": 3})]
VARIANTS += [(n, {"rule": r}) for n in ("selector", "conditional") for r in CHOICES["rule"]]
VARIANTS += [("selector", {"rule": "top", "counts": "mask"})]
VARIANTS += [("selector", {"rule": rule, "counts": "adaptive"}) for rule in CHOICES["rule"]]
VARIANTS += [("feather", {"uniform": True}), ("sparsevlm", {"candidates": 1.0, "recycled": 1.0})]
VARIANTS += [("fopru", {"strategy": "row"}), ("vtc-cls", {"layers": 2})]
VARIANTS += [("visionzip", {"contextual": share}) for share in (0.0, 0.6)]
VARIANTS += [("prumerge", {"counts": "outliers"}), ("prumerge-plus", {"neighbours": 2})]
VARIANTS += [
    ("hiprune", {"alpha": 1.0}),
    ("vflowopt", {"recycled": 0.0}),
    ("vflowopt", {"alpha": 0.0}),
]
VARIANTS += [("mustdrop", {"threshold": -1.0}), ("mustdrop", {"protect": 0.0, "window": 2})]
VARIANTS += [("visionzip", {"as_released": True})]
VARIANTS += [("vispruner", {"important": share, "at_once": 3}) for share in (0.0, 1.0)]
VARIANTS += [("holov", {"by": "score", "crops": 7}), ("scope", {"alpha": 0.0})]
VARIANTS += [("dart", {"pivots": 40, "text_pivots": 0}), ("trio", {"similar": 0.1})]
CASES = [(name, {}) for name in method_names()] + VARIANTS


def bound(name: str, options: dict[str, object]) -> Method:
    """The method ready for ENCODER; trained ones with small random weights."""
    if method_class(name).trained:
        options = {**options, "weights": trained(encoder_of(name), str(options.get("rule", "top")))}
    if name == "dymu":
        options = {"thresholds": halving(encoder_of(name)), **options}
    return get_method(name, **options).bind(encoder_of(name))


@cache
def trained(encoder: EncoderInfo, rule: str) -> Selector:
    """A small calibrated selector of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SelectorConfig(encoder=encoder, depth=1, positions="none", rule=rule)
        selector = Selector(config).eval()
        calibrate(selector, [vision(8, seed=9).tokens])
    return selector


def halving(encoder: EncoderInfo) -> Thresholds:
    """Thresholds at which about half of all pairs of random keys merge."""
    return Thresholds(encoder, (0.2, 0.9), ((0.0,) * (encoder.block + 1),) * 2)


def encoder_of(name: str) -> EncoderInfo:
    """What a method is bound to: for those inside the LLM, its layer 1."""
    inside = method_class(name).site is Site.LLM
    return dataclasses.replace(ENCODER, site=Site.LLM, layer=1) if inside else ENCODER


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_promise(name: str, options: dict[str, object], check: str) -> None:
    method = bound(name, options)
    assert method.site in Site
    require_promise(name, options, check, method)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_config_goes_through_json(name: str, options: dict[str, object]) -> None:
    method = get_method(name, **options)
    assert dataclasses.is_dataclass(method)
    check_config_round_trip(name, method)


@pytest.mark.parametrize("rule", CHOICES["rule"])
def test_adaptive_counts_differ_between_crops(rule: str) -> None:
    """Or the promises above would hold for a method that never adapts."""
    method = bound("selector", {"rule": rule, "counts": "adaptive"})
    assert (method.exact, method.on_average) == (False, True)
    counts = method.reduce(vision(6), torch.full((6,), 9)).counts_B
    assert len(set(counts.tolist())) > 1


def _looks_at_pixels(name: str) -> bool:
    cls = method_class(name)
    return "pixels" in cls.needs and cls.site is not Site.PIXELS  # there the adapter resizes


@pytest.mark.parametrize("name", list(filter(_looks_at_pixels, method_names())))
def test_missing_pixels_are_named(name: str) -> None:
    method = bound(name, {})
    with pytest.raises(UnsupportedError, match="Expected the pixels"):
        method.reduce(dataclasses.replace(vision(), patches=None), torch.tensor([3, 3, 3]))
