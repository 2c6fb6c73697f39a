"""Adaptive counts keep their word on mixes that they were not calibrated for."""

import random

import pytest
import torch

from tokensieve import load_nano, sieve
from tokensieve.budget import Pool
from tokensieve.data.synth import generate
from tokensieve.errors import ConfigError
from tokensieve.hf.report import CropReport, ImageReport, PromptReport
from tokensieve.hf.steady import Steady
from tokensieve.methods.registry import get_method

L = 256


def prompt(kept, crops=1):
    crop = CropReport((16, 16), torch.ones(L, dtype=torch.bool), torch.arange(kept // crops))
    return PromptReport((ImageReport(L * crops, kept, 0, (crop,) * crops),))


def stream(steady, needs, batch=1):
    """Pictures that would keep `need` times what is asked, from half to twice as many."""
    total = 0
    for start in range(0, len(needs), batch):
        asked = steady.now * L if isinstance(steady.now, float) else steady.now
        kept = [round(asked * min(2, max(0.5, need))) for need in needs[start : start + batch]]
        total += sum(kept)
        steady.saw([prompt(one) for one in kept])
    return total / len(needs)


@pytest.mark.parametrize("keep", [0.1, 0.3, 40])
@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("mix", ["few", "many", "both", "turns"])
def test_any_mix_comes_to_what_was_asked(mix, batch, keep):
    draw = random.Random(0)
    centre = {"few": [0.3], "many": [1.9], "both": [0.5, 1.7], "turns": [0.5]}[mix]
    needs = [draw.choice(centre) * draw.uniform(0.8, 1.2) for _ in range(600)]
    if mix == "turns":
        needs += [1.9 * draw.uniform(0.8, 1.2) for _ in range(600)]
    wanted = keep * L if isinstance(keep, float) else keep
    found = stream(Steady(keep), needs, batch)
    assert abs(found / wanted - 1) < 0.03
    plain = sum(min(2, max(0.5, need)) for need in needs) / len(needs)
    assert abs(plain - 1) > 0.03  # what the same pictures keep without a correction


def test_of_crops_and_whole_numbers():
    steady = Steady(40)
    steady.saw([prompt(40, crops=2)])
    assert steady.owed == 0
    steady.saw([prompt(20, crops=2)])
    assert steady.owed == 0.5
    assert steady.now > 40
    prompts = Steady(40, Pool.PROMPT)
    prompts.saw([PromptReport((*prompt(30).images, *prompt(10).images))])
    assert prompts.owed == 0
    few = Steady(L + 1)
    few.saw([prompt(L), PromptReport(())])
    assert few.owed == 0
    assert Steady(1.0).now == 1.0


@pytest.mark.parametrize(
    ("method", "options"), [("selector", {"counts": "adaptive"}), ("dymu", {})]
)
def test_a_foreign_mix_under_a_sieve(method, options):
    model, processor = load_nano()
    pictures = [generate("scene", i, "test").image for i in range(24)]
    found = {}
    for steady in (False, True):
        with sieve(model, method, keep=0.2, steady=steady, **options) as report:
            for start in range(0, 24, 4):
                part = pictures[start : start + 4]
                inputs = processor(images=part, text=["<image>What is KR?<answer>"] * 4,
                                   return_tensors="pt")  # fmt: skip
                with torch.inference_mode():
                    model(**inputs)
        found[steady] = report.kept_tokens / (0.2 * L * 24)
        assert report.keep == 0.2
    assert abs(found[False] - 1) > 0.1
    assert abs(found[True] - 1) < 0.5 * abs(found[False] - 1)


def test_what_is_out_of_reach_is_asked_as_it_was(monkeypatch):
    """DyMU halves a layer at most: less than it can reach is not asked for on the way."""
    model, processor = load_nano()
    picture = generate("plain", 0, "test").image
    inputs = processor(images=picture, text="<image>What is KR?<answer>", return_tensors="pt")
    monkeypatch.setattr(Steady, "now", 1e-9)
    with sieve(model, "dymu", keep=0.2, steady=True) as report, torch.inference_mode():
        model(**inputs)
    assert report.kept_tokens >= 0.1 * L


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("divprune", {}, "'divprune', whose counts are as asked"),
        ("selector", {}, "'selector', whose counts are as asked"),
        ("selector", {"counts": "adaptive", "layer": 1}, "'selector' with `layer`"),
    ],
)
def test_what_it_does_not_go_with_is_refused(method, more, said):
    model, _ = load_nano()
    with pytest.raises(ConfigError, match=said), sieve(model, method, steady=True, **more):
        pass
    with pytest.raises(ConfigError, match="a calibration, which holds"):
        Steady.of("dymu", get_method("dymu"), 0.2, Pool.CROP, inside=False, calibrated=True)
