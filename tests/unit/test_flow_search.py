"""Searches by few questions: P-Sigmoid's steepness, options by the flow to the last token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from families.tiny import build
from tokensieve.errors import ConfigError
from tokensieve.functional.bayes import bayesian_search, expected_improvement
from tokensieve.hf.families.fingerprint import llm_info
from tokensieve.hf.flow import kept_flow, search_flow
from tokensieve.hf.search import fit_p_sigmoid
from tokensieve.schedules import PSigmoid


def test_improvement_by_hand() -> None:
    """One point at 0 of score 0, another far away of score 2: scaled -1 and 1. A candidate at the
    better one is known, and no better; one far from both has mean 0 and deviation 1: z = -1, so
    -.1587 + .2420 = .0833."""
    asked = np.array([[0.0], [50.0]])
    found = expected_improvement(asked, np.array([0.0, 2.0]), np.array([[50.0], [-50.0]]))
    np.testing.assert_allclose(found, [0.0, 0.0833], atol=2e-3)


def test_a_bayesian_search_finds_the_top_of_a_hill_by_few_questions() -> None:
    asked: list[tuple[float, ...]] = []

    def hill(point: tuple[float, ...]) -> float:
        asked.append(point)
        x, y = point
        return -((x - 3.0) ** 2) - (10 * (y + 0.2)) ** 2

    bounds = [(0.0, 10.0), (-1.0, 1.0)]
    best, score = bayesian_search(hill, bounds, 40)
    assert len(asked) == 40
    assert score == hill(best) > -0.05
    drawn = max(map(hill, asked[:13]))  # the part that is spread at random
    assert score > drawn
    assert bayesian_search(hill, bounds, 12)[0] == bayesian_search(hill, bounds, 12)[0]
    assert all(0 <= x <= 10 and -1 <= y <= 1 for x, y in asked)


def test_the_steepness_that_a_score_asks_for_is_found() -> None:
    tiny = build("llava")
    info = llm_info(tiny.model, 1)
    want = list(PSigmoid(20.0).stages(info, 0.6).values())

    def score(shares: tuple[float, ...]) -> float:
        assert shares[0] == 1
        return -math.dist(shares[1:], want)

    found = fit_p_sigmoid(tiny.model, "fastv", [], 0.6, score=score, evaluations=25)
    got = list(found.stages(info, 0.6).values())
    assert math.dist(got, want) < 0.02


def test_options_that_keep_the_flow() -> None:
    tiny = build("llava")
    prompts = [tiny.inputs([1])]
    asked = {"evaluations": 6, "bounds": {"alpha": (0.0, 1.0), "recycled": (0.0, 0.5)}}
    best = search_flow(tiny.model, prompts, 0.3, **asked)
    kept = kept_flow(tiny.model, best, prompts, 0.3)
    assert -1 <= kept < 1
    worst = search_flow(tiny.model, prompts, 0.3, **{**asked, "evaluations": 1})
    assert kept >= kept_flow(tiny.model, worst, prompts, 0.3)
    assert search_flow(tiny.model, prompts, 0.3, **asked) == best
    assert_close(kept_flow(tiny.model, "full", prompts, 1.0), 1.0)


@pytest.mark.parametrize("evaluations", [0, True, 1.5])
def test_a_search_that_cannot_be(evaluations: object) -> None:
    tiny = build("llava")
    with pytest.raises(ConfigError, match="whole number from 1"):
        search_flow(tiny.model, [], 0.3, evaluations=evaluations)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="whole number from 1"):
        fit_p_sigmoid(tiny.model, "fastv", [], 0.5, evaluations=evaluations)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a list of prompts"):
        search_flow(tiny.model, [], 0.3)


def test_prompts_padded_on_the_right_are_refused() -> None:
    tiny = build("llava")
    inputs = dict(tiny.inputs([1]))
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][:, -1] = 0
    with pytest.raises(ConfigError, match="padded on the left"):
        search_flow(tiny.model, [inputs], 0.3)
