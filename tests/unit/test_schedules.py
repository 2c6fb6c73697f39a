"""Schedules: layers that scale, sigmoids of a mean, a search and its file."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families.tiny import build
from tokensieve.errors import BudgetError, ConfigError, EncoderMismatchError, WeightsError
from tokensieve.hf.search import first_token_score, search_schedule, withdrawal_layer
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.schedules import PSigmoid, Searched, Stepwise, g_search, greedy_search
from tokensieve.schedules.base import check_schedule, geometric, linear, scaled_layers
from tokensieve.schedules.searched import steps_of
from tokensieve.types import EncoderInfo, Site


def llm(depth: int) -> EncoderInfo:
    return EncoderInfo("llama", 32, 1, depth, 4, 64, site=Site.LLM)


INSIDE = [name for name in method_names() if method_class(name).site is Site.LLM]


@settings(deadline=None)
@given(st.integers(2, 80), st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True))
def test_layers_are_there_and_distinct(depth: int, places: list[float]) -> None:
    layers = scaled_layers(depth, sorted(places))
    assert list(layers) == sorted(set(layers))
    assert all(0 < at < depth for at in layers)
    assert len(layers) == min(len(places), depth - 1)


def test_layers_scale() -> None:
    assert scaled_layers(32, (2 / 32,)) == (2,)
    assert scaled_layers(4, (2 / 32,)) == (1,)
    assert scaled_layers(28, (0.25, 0.5, 0.75)) == (7, 14, 21)
    assert scaled_layers(4, (2 / 32, 6 / 32, 15 / 32)) == (1, 2, 3)
    assert scaled_layers(3, (0.25, 0.5, 0.75)) == (1, 2)
    with pytest.raises(ConfigError, match="two layers or more"):
        scaled_layers(1, (0.5,))


@pytest.mark.parametrize(
    ("name", "keep", "stages"),
    [
        ("fastv", 0.3, {2: 0.3}),
        ("fastv", 64, {2: 64}),
        ("pyramiddrop", 0.125, {8: 0.5, 16: 0.25, 24: 0.125}),
        ("feather", 0.125, {8: 0.5, 16: 0.125}),
        ("pact", 0.2, {4: 0.2}),
        ("sparsevlm", 0.125, {3: 0.5, 7: 0.25, 16: 0.125}),
        ("mustdrop-llm", 0.0625, {3: 0.5, 7: 0.25, 11: 0.125, 15: 0.0625}),
        ("vtw", 0.5, {16: 0.5}),
        ("vtw", 0.01, {1: 0.01}),
        ("vtw", 1.0, {31: 1.0}),
    ],
)
def test_where_methods_drop_in_a_llava(name: str, keep: float, stages: dict[int, float]) -> None:
    found = get_method(name).llm_stages(32, keep)
    assert found is not None
    assert list(found) == list(stages)
    assert list(found.values()) == pytest.approx(list(stages.values()))


@pytest.mark.parametrize("name", [name for name in INSIDE if name != "conditional"])
@pytest.mark.parametrize("depth", [2, 3, 4, 28, 32, 40])
def test_every_method_has_stages_that_hold(name: str, depth: int) -> None:
    method = get_method(name)
    for keep in (0.05, 0.4, 1.0):
        found = method.llm_stages(depth, keep)
        assert found is not None
        check_schedule(found, depth)
        if method.budgeted:
            assert found[max(found)] == pytest.approx(keep)


def test_aim_falls_by_equal_steps() -> None:
    found = get_method("aim-llm").llm_stages(28, 0.1)
    assert found is not None
    assert list(found) == list(range(14, 23))
    steps = [a - b for a, b in zip([1.0, *found.values()], found.values(), strict=False)]
    assert steps == pytest.approx([0.1] * 9)


def test_counts_cannot_be_spread() -> None:
    for make in (lambda: geometric(32, (0.2, 0.5), 64), lambda: linear(32, 0.5, 0.8, 64)):
        with pytest.raises(BudgetError, match=r"as a fraction, to be reached in .* Got 64"):
            make()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.floats(0.05, 1), st.floats(0, 60))
def test_a_sigmoid_falls_and_has_the_mean_asked_for(d: int, keep: float, steep: float) -> None:
    if keep * d <= 1.001:
        return
    found = PSigmoid(steep).stages(llm(d), keep)
    check_schedule(found, d)
    assert list(found) == list(range(1, d))
    assert (1 + sum(found.values())) / d == pytest.approx(keep, abs=1e-6)


def test_a_sigmoid_by_hand() -> None:
    found = PSigmoid(8.0).stages(llm(5), 0.6)  # symmetric about layer 2.5
    want = [1 / (1 + math.exp(8 * (at / 5 - 0.5))) for at in (1, 2, 3, 4)]
    assert list(found.values()) == pytest.approx(want, abs=1e-6)
    with pytest.raises(BudgetError, match=r"above 0.2: .* Got 0.2"):
        PSigmoid().stages(llm(5), 0.2)
    with pytest.raises(BudgetError, match="as a fraction, the mean"):
        PSigmoid().stages(llm(5), 64)
    with pytest.raises(ConfigError, match="`steepness`"):
        PSigmoid(-1.0)


def test_steps_by_parts_of_the_depth() -> None:
    assert Stepwise({0.5: 0.2, 0.25: 0.5}).stages(llm(32), 0.4) == {8: 0.5, 16: 0.2}
    assert Stepwise({0.5: 0.2, 0.25: 0.5}).stages(llm(4), 0.4) == {1: 0.5, 2: 0.2}
    with pytest.raises(ConfigError, match="at most 1 steps"):
        Stepwise({0.5: 0.2, 0.25: 0.5}).stages(llm(2), 0.4)
    with pytest.raises(ConfigError, match="no more tokens"):
        Stepwise({0.25: 0.2, 0.5: 0.5})
    with pytest.raises(ConfigError, match="parts between 0 and 1"):
        Stepwise({1.5: 0.2})


def test_greedy_takes_what_costs_least() -> None:
    """Only layer 1 matters: it is lowered last, however often the score is asked."""

    def score(shares: tuple[float, ...]) -> float:
        return shares[1]

    trace = greedy_search(score, 4, 0.5, levels=(1.0, 0.5, 0.25))
    assert trace == (
        (1, 1, 1, 1), (1, 1, 1, 0.5), (1, 1, 1, 0.25), (1, 1, 0.5, 0.25), (1, 1, 0.25, 0.25),
        (1, 0.5, 0.25, 0.25),
    )  # fmt: skip
    assert steps_of(trace[-1]) == {1: 0.5, 2: 0.25}
    assert steps_of(trace[0]) == {1: 1.0}


def test_greedy_weighs_loss_by_what_is_saved() -> None:
    """Lowering layer 1 takes all behind it along and saves three times as much for twice the
    loss."""

    def score(shares: tuple[float, ...]) -> float:
        return -2.0 if shares[2] < 1 else -1.0 if shares[3] < 1 else 0.0

    assert greedy_search(score, 4, 0.65, levels=(1.0, 0.5))[1] == (1, 0.5, 0.5, 0.5)


def test_greedy_at_chosen_layers() -> None:
    trace = greedy_search(lambda shares: 0.0, 6, 0.5, levels=(1.0, 0.2), layers=(2, 4))
    assert trace[1:] == ((1, 1, 1, 1, 0.2, 0.2), (1, 1, 0.2, 0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("keep", "options", "error", "message"),
    [
        (0.1, {"levels": (1.0, 0.5)}, BudgetError, "at least 0.625, the least these levels"),
        (0.5, {"levels": (1.0, 1.0)}, ConfigError, "falling levels"),
        (0.5, {"levels": (0.9, 0.5)}, ConfigError, "falling levels"),
        (0.5, {"layers": (4,)}, ConfigError, "from 1 to 3, .* Got 4"),
        (0.5, {"layers": ()}, ConfigError, "at least one layer"),
    ],
)
def test_impossible_searches_are_said(keep, options, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        greedy_search(lambda shares: 0.0, 4, keep, **options)


TRACE = ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 0.5, 0.5), (1.0, 0.5, 0.25, 0.25))


def test_one_search_serves_many_budgets() -> None:
    found = Searched(llm(4), TRACE)
    assert found.stages(llm(4), 1.0) == {1: 1.0}
    assert found.stages(llm(4), 0.8) == {2: 0.5}
    assert found.stages(llm(4), 0.5) == {1: 0.5, 2: 0.25}
    with pytest.raises(BudgetError, match=r"at least 0\.500, where the search ended"):
        found.stages(llm(4), 0.4)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ((), "at least one entry"),
        (((1.0, 0.5),), "a share for each of 4 layers. Got 2"),
        (((1.0, 0.5, 0.6, 0.2),), "no more tokens at a later layer. Got 0.5 and then 0.6"),
        (((0.5, 0.5, 0.5, 0.5),), "all tokens in the first layer"),
        (((1.0, 0.5, 0.5, 0.0),), "Expected `keep`"),
    ],
)
def test_wrong_traces_are_said(trace, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        Searched(llm(4), trace)


def test_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "schedule.json"
    Searched(llm(4), TRACE).save(path)
    again = Searched.load(path)
    assert again.trace == TRACE
    assert again.stages(llm(4), 0.8) == {2: 0.5}
    for other in (llm(5), replace(llm(4), model_type="qwen2"), replace(llm(4), width=64)):
        with pytest.raises(EncoderMismatchError, match="searched on an LLM with"):
            again.stages(other, 0.8)
    data = json.loads(path.read_text())
    data["trace"][1] = [1.0, 0.5, 0.6, 0.6]
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="no more tokens"):
        Searched.load(path)
    data["trace"][1] = [1.0, 0.5, 0.5, 0.5, 0.5]
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="a share for each of 4 layers"):
        Searched.load(path)
    for broken in ("", "{}", '{"format": 2}', '{"format": 1, "llm": {}, "trace": []}'):
        path.write_text(broken)
        with pytest.raises(WeightsError, match="Expected a searched schedule"):
            Searched.load(path)
    with pytest.raises(WeightsError, match="Expected a searched schedule"):
        Searched.load(tmp_path / "none.json")


def test_a_search_on_a_model_and_its_use(tmp_path) -> None:  # type: ignore[no-untyped-def]
    tiny = build("llava")
    prompts = [tiny.inputs([1, 2]), tiny.inputs([1])]
    found = search_schedule(tiny.model, "fastv", prompts, 0.6, levels=(1.0, 0.5, 0.25))
    score = first_token_score(tiny.model, "fastv", prompts)
    assert score(found.trace[0]) == pytest.approx(0, abs=1e-5)
    assert score(found.trace[-1]) < -1e-4
    first = [(1.0, 1.0, 0.5), (1.0, 0.5, 0.5)]  # what the first step had to choose from
    price = [-score(shares) / (3 - sum(shares)) for shares in first]
    assert found.trace[1] == first[price.index(min(price))]
    found.save(tmp_path / "it.json")
    schedule = Searched.load(tmp_path / "it.json")
    with sieve(tiny.model, "pyramiddrop", 0.6, layer=schedule) as report, torch.no_grad():
        tiny.model(**tiny.inputs([1]))
    held = report.calls[0].tokens_by_layer(3)
    assert held == [round(16 * share) for share in found.trace[-1]]
    with pytest.raises(ConfigError, match="prompts to search on"):
        search_schedule(tiny.model, "fastv", [], 0.6)
    with (
        pytest.raises(EncoderMismatchError, match="searched on an LLM with model_type=llama"),
        sieve(build("qwen2_5_vl").model, "fastv", 0.6, layer=schedule),
    ):
        pass


@pytest.mark.parametrize("name", INSIDE)
def test_a_sigmoid_in_any_method(name: str) -> None:
    if method_class(name).trained:  # its weights are for one layer
        return
    tiny = build("llava")
    with sieve(tiny.model, name, 0.6, layer=PSigmoid(3.0)) as report, torch.no_grad():
        tiny.model(**tiny.inputs([1]))
    held = report.calls[0].tokens_by_layer(3)
    assert held == sorted(held, reverse=True)
    if method_class(name).budgeted:
        assert abs(sum(held) / 48 - 0.6) < 0.04
        assert f"{name} at keep=0.6" in str(report)


def test_vtw_takes_no_count() -> None:
    """It keeps none or all: a count would say nothing of where."""
    with pytest.raises(BudgetError, match=r"as a share for .vtw.*the count 5"):
        get_method("vtw").llm_stages(4, 5)


def test_the_layer_of_vtw() -> None:
    """The first at which little changes: with a looser threshold an earlier one, or none."""
    tiny = build("llava")
    prompts = [tiny.inputs([1]), tiny.inputs([1, 2])]
    depth = tiny.model.config.text_config.num_hidden_layers
    assert withdrawal_layer(tiny.model, prompts, threshold=1e9) == 1
    assert withdrawal_layer(tiny.model, prompts, threshold=1e9, first=2) == 2
    assert withdrawal_layer(tiny.model, prompts, threshold=0.0) is None
    score = first_token_score(tiny.model, "vtw", prompts)
    lost = [-score((1.0,) * at + (0.5,) * (depth - at)) for at in range(1, depth)]
    assert lost[-1] < lost[0]
    assert withdrawal_layer(tiny.model, prompts, threshold=2 * lost[-1]) in range(1, depth)
    with pytest.raises(ConfigError, match="a list of prompts"):
        withdrawal_layer(tiny.model, [])
    with pytest.raises(ConfigError, match="first layer from 1"):
        withdrawal_layer(tiny.model, prompts, first=depth)


def test_g_search_goes_from_shallow_to_deep() -> None:
    """Three layers; a token costs 1 at layer 1 and .1 at layer 2: on paper, with .4 to lose."""
    asked: list[tuple[float, ...]] = []

    def score(shares: tuple[float, ...]) -> float:
        asked.append(shares)
        return -(1 - shares[1]) - 0.1 * (1 - shares[2])

    # layer 1 to .75: -.25 - .025 = -.275 stays; to .5: -.5 - .05 is too low, and ends the layer
    # layer 2 to .5: -.25 - .05 = -.3 stays; to .25: -.325 stays; there is no lower level
    want = ((1.0, 1.0, 1.0), (1.0, 0.75, 0.75), (1.0, 0.75, 0.5), (1.0, 0.75, 0.25))
    assert g_search(score, 3, 0.4, levels=(1.0, 0.75, 0.5, 0.25)) == want
    assert asked == [*want[:2], (1.0, 0.5, 0.5), *want[2:]]
    assert g_search(score, 3, 0.0, levels=(1.0, 0.5)) == want[:1]
    with pytest.raises(ConfigError, match="Expected `loss` as a number from 0"):
        g_search(score, 3, -1.0)
