"""A method before the LLM and one inside it together: exact against a model that may not look."""

import math

import pytest
import torch
from torch.testing import assert_close

from families import inside
from families.checks import CLOSE, NEW, answer
from families.inside import blocked, kept_positions
from families.methods import ByNorm, Doubled, Inside, InsideRagged, Ragged
from families.said import require_same, require_tokens
from families.tiny import REQUIRED, build
from tokensieve.errors import BudgetError, ConfigError, UnknownNameError, UnsupportedError
from tokensieve.hf import compress as compress_module
from tokensieve.hf.asked import Asked
from tokensieve.hf.plan import Plan
from tokensieve.hf.sieve import sieve
from tokensieve.methods.mustdrop_llm import MustDropLLM
from tokensieve.methods.registry import get_method
from tokensieve.schedules import PSigmoid, Stepwise

required = pytest.mark.parametrize("name", REQUIRED)
PAIRS = [
    ((ByNorm(), InsideRagged()), (0.7, 0.4), {1: 0.5, 2: 0.3}),
    ((Ragged(), Inside()), (0.7, 0.3), 1),
    (("divprune", "fastv"), (0.5, 0.2), None),
    (("divprune", "pyramiddrop"), (0.7, 0.3), None),
    (("stride", "vtw"), (0.5, 0.3), None),
]
every_pair = pytest.mark.parametrize(("methods", "keeps", "layer"), PAIRS, ids=str)


def both(model, inputs, methods, keeps, layer=None, call=answer, **options):
    with sieve(model, methods, keeps, layer=layer, **options) as report:
        out = call(model, inputs)
    return out, report.calls[-1]


def check_pair(tiny, methods, keeps, layer, pictures=(1, 2)):
    inputs = tiny.inputs(list(pictures))
    (tokens, logits), call = both(tiny.model, inputs, methods, keeps, layer)
    assert call.stages[0].layer == 0
    assert len(call.stages) > 1
    with blocked(tiny.model, inputs, call.stages):
        wanted_tokens, wanted = answer(tiny.model, inputs)
    claim = f"{tiny.name} under {methods} does not answer as if it could not look at the dropped"
    require_same(logits, wanted, claim, **CLOSE)
    require_tokens(tokens, wanted_tokens, claim)
    assert call.stages[-1].kept_tokens < call.stages[0].kept_tokens < call.visual_tokens


@required
@every_pair
@pytest.mark.one_of_each
def test_dropped_tokens_are_as_if_not_looked_at(name, methods, keeps, layer):
    check_pair(build(name), methods, keeps, layer)
    check_pair(build(name), methods, keeps, layer, pictures=(2, 0, 1))


@required
def test_the_check_bites_where_the_first_is_forgotten(name, monkeypatch):
    right = compress_module._pair_plan

    def wrong(model, plan, before, inputs, keys):
        done, stages = right(model, plan, before, inputs, keys)
        report = stages.reports[0]
        stages.reports[0] = type(report)(1, report.prompts)
        return done, stages

    monkeypatch.setattr(compress_module, "_pair_plan", wrong)
    methods, keeps, layer = PAIRS[0]
    with pytest.raises(AssertionError):
        check_pair(build(name), methods, keeps, layer)


@required
def test_each_layer_caches_what_is_left_there(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])

    def lengths(model, inputs):
        out = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
        )
        return [layer.keys.shape[-2] for layer in out.past_key_values.layers]

    found, call = both(tiny.model, inputs, ("divprune", "fastv"), (0.6, 0.3), 2, lengths)
    by_stage = [
        int(kept_positions(tiny.model, inputs, stage).sum(-1).max()) for stage in call.stages
    ]
    assert found == [by_stage[0] + NEW - 1] * 2 + [by_stage[1] + NEW - 1]
    assert by_stage[1] < by_stage[0] < inputs["input_ids"].shape[1]


@required
@every_pair
@pytest.mark.one_of_each
def test_a_padded_prompt_is_answered_as_alone(name, methods, keeps, layer):
    tiny = build(name)
    (_, together), _ = both(tiny.model, tiny.inputs([1, 2]), methods, keeps, layer)
    (_, alone), _ = both(tiny.model, tiny.inputs([1]), methods, keeps, layer)
    assert_close(together[:1], alone, **CLOSE)


@required
def test_beams(name):
    def beams(model, inputs):
        return model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, num_beams=3, num_return_sequences=2
        )

    tiny = build(name)
    inputs = tiny.inputs([1, 1])
    tokens, call = both(tiny.model, inputs, ("divprune", "fastv"), (0.7, 0.3), None, beams)
    with blocked(tiny.model, inputs, call.stages):
        assert torch.equal(tokens, beams(tiny.model, inputs))


@required
def test_keeping_all_changes_nothing(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    (tokens, logits), call = both(tiny.model, inputs, ("divprune", "pyramiddrop"), (1.0, 1))
    wanted_tokens, wanted = answer(tiny.model, inputs)
    assert_close(logits, wanted, rtol=0, atol=0)
    assert torch.equal(tokens, wanted_tokens)
    assert call.kept_tokens == call.visual_tokens


@required
def test_a_forward_reads_the_short_prompt(name):
    @torch.no_grad()
    def forward(model, inputs):
        return model(**inputs).logits

    tiny = build(name)
    inputs = tiny.inputs([1])
    logits, call = both(tiny.model, inputs, ("divprune", "fastv"), (0.6, 0.3), 1, forward)
    first = kept_positions(tiny.model, inputs, call.stages[0])
    last = kept_positions(tiny.model, inputs, call.stages[1])
    with blocked(tiny.model, inputs, call.stages):
        wanted = forward(tiny.model, inputs)
    assert_close(logits[last[first][None]], wanted[last], **CLOSE)
    assert logits.shape[1] == int(first.sum())


@required
@pytest.mark.parametrize("method", [Inside, inside.InsideRagged])
@pytest.mark.one_of_each
def test_everything_is_put_back(name, method):
    tiny = build(name)
    model, inputs = tiny.model, tiny.inputs([1, 2])
    before, hooks, state = answer(model, inputs), inside.hooks_on(model), set(model.__dict__)
    both(model, inputs, (ByNorm(), method()), (0.5, 0.3), 1)
    both(model, inputs, (ByNorm(), method()), (0.5, 0.3), 1, lambda m, i: m(**i))
    assert inside.hooks_on(model) == hooks
    assert set(model.__dict__) == state
    assert_close(answer(model, inputs), before, rtol=0, atol=0)


def test_merged_tokens_go_on_into_the_llm():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    (_, logits), _ = both(tiny.model, inputs, (Doubled(), Inside()), (0.5, 0.25), 1)
    (_, plain), _ = both(tiny.model, inputs, (ByNorm(), Inside()), (0.5, 0.25), 1)
    assert float((logits - plain).abs().max()) > 1e-3


def test_the_report_is_of_the_whole_picture():
    tiny = build("llava")
    with sieve(tiny.model, ("divprune", "fastv"), (8, 4), layer={1: 6, 2: 4}) as report:
        tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    call = report.calls[0]
    assert [(s.layer, s.kept_tokens) for s in call.stages] == [(0, 8), (1, 6), (2, 4)]
    assert call.tokens_by_layer(3) == [8, 6, 4]
    assert int(call.prompts[0].images[0].crops[0].valid.sum()) == 16
    said = "divprune+fastv at keep=4 a picture: 4 of 16 visual tokens (25%) from layer 1 and 2 "
    assert said in str(report)
    assert call.ms["select"] > 0


def test_shares_of_a_pair_are_of_the_tokens_there_were_at_first():
    """The second spreads what is left to it: 0.5 to 0.125 in three steps of 0.63."""
    tiny = build("llava")
    with sieve(tiny.model, ("divprune", "pyramiddrop"), (0.5, 0.125)) as report:
        tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    assert report.calls[0].tokens_by_layer(3) == [8, 4, 2]


def test_a_schedule_for_the_second():
    tiny = build("llava")
    with sieve(tiny.model, ("divprune", "fastv"), (0.5, 0.25), layer=PSigmoid(4.0)) as report:
        tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    found = report.calls[0].tokens_by_layer(3)
    assert found[0] == 8
    assert abs(sum(found) / 3 - 4) <= 0.5
    with sieve(
        tiny.model, ("divprune", "fastv"), (0.5, 0.4), layer=Stepwise({0.5: 0.25})
    ) as report:
        tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    assert report.calls[0].tokens_by_layer(3) == [8, 8, 4]


def test_prompts_without_pictures_pass():
    tiny = build("llava")
    ids = torch.tensor([[1, 2, 7, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    (tokens, _), call = both(tiny.model, inputs, ("divprune", "fastv"), (0.5, 0.2))
    assert torch.equal(tokens, answer(tiny.model, inputs)[0])
    assert call.stages == ()


@pytest.mark.parametrize(
    ("methods", "keeps", "options", "error", "message"),
    [
        (("divprune", "avgpool"), (0.5, 0.2), {}, ConfigError, "second. Got 'avgpool', which acts"),
        (("fastv", "divprune"), (0.5, 0.2), {}, ConfigError, "first. Got 'fastv', which acts"),
        (("fastv", "vtw"), (0.5, 0.2), {}, ConfigError, "first. Got 'fastv', which acts"),
        (("divprune",), (0.5,), {}, ConfigError, "a pair of them"),
        (("divprune", "fastv", "vtw"), (0.5, 0.2), {}, ConfigError, "a pair of them"),
        (("divprune", "fastv"), 0.5, {}, ConfigError, "`keep` as a pair, .* Got 0.5"),
        (("divprune", "fastv"), (0.5, 0.2, 0.1), {}, ConfigError, "`keep` as a pair"),
        (("divprune", "fastv"), (0.2, 0.5), {}, ConfigError, "no more tokens inside the LLM"),
        (
            ("divprune", "fastv"),
            (0.1, 100),
            {},
            ConfigError,
            "shares or counts of tokens, not both",
        ),
        (("divprune", "fastv"), (0.5, 0.2), {"layer": {1: 0.4, 2: 9}}, ConfigError, "not both"),
        (("divprune", "fastv"), (0.2, 1.5), {}, BudgetError, "Expected `keep`"),
        (("divprune", "fastv"), (0.5, 0.2), {"layer": {1: 0.6}}, ConfigError, "Got 0.5 and then"),
        (("divprune", "fastv"), (0.5, 0.2), {"layer": 3}, ConfigError, "from 1 to 2, .* Got 3"),
        (("random", "fastv"), (0.5, 0.2), {"seed": 3}, ConfigError, "Got seed, which might be"),
        (("divprun", "fastv"), (0.5, 0.2), {}, UnknownNameError, "Did you mean 'divprune'"),
        ("divprune", (0.5, 0.2), {}, BudgetError, "Expected `keep`"),
    ],
)
def test_wrong_pairs_are_said(methods, keeps, options, error, message):
    with (
        pytest.raises(error, match=message),
        sieve(build("llava").model, methods, keeps, **options),
    ):
        pass


def test_options_are_given_with_instances():
    tiny = build("llava")
    methods = (get_method("random", seed=3), get_method("fastv"))
    (_, _), call = both(tiny.model, tiny.inputs([1]), methods, (0.5, 0.25))
    assert call.kept_tokens == 4


def test_compress_takes_no_pair():
    tiny = build("llava")
    with pytest.raises(UnsupportedError, match="where `compress` does not reach"):
        Plan.of(tiny.model, Asked(("divprune", "fastv"), (0.5, 0.2)), pure=True)


@required
@pytest.mark.parametrize("method", ["vtw", "todre-llm"])
@pytest.mark.parametrize("layer", [1, {1: 0.5, 2: 0.5}], ids=str)
@pytest.mark.one_of_each
def test_all_tokens_may_leave(name, method, layer):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    options = {"threshold": 1.0} if method == "todre-llm" else {}
    with sieve(tiny.model, method, 0.5, layer=layer, **options) as report:
        tokens, logits = answer(tiny.model, inputs)
    call = report.calls[0]
    assert call.kept_tokens == 0
    with blocked(tiny.model, inputs, call.stages):
        wanted_tokens, wanted = answer(tiny.model, inputs)
    assert_close(logits, wanted, **CLOSE)
    assert torch.equal(tokens, wanted_tokens)


@required
@pytest.mark.parametrize(
    "method", ["fastv", "pyramiddrop", "feather", "mustdrop-llm", "aim-llm", "todre-llm", "vtw"]
)
@pytest.mark.one_of_each
def test_registered_methods_are_as_if_not_looked_at(name, method):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    with sieve(tiny.model, method, 0.4) as report:
        tokens, logits = answer(tiny.model, inputs)
    stages, forgets = report.calls[0].stages, get_method(method).forgets
    with blocked(tiny.model, inputs, stages, forgets=forgets):
        wanted_tokens, wanted = answer(tiny.model, inputs)
    assert_close(logits, wanted, **CLOSE)
    assert torch.equal(tokens, wanted_tokens)
    if forgets:
        with blocked(tiny.model, inputs, stages):
            assert not torch.equal(answer(tiny.model, inputs)[1], wanted)


def test_what_was_dropped_later_leaves_the_cache():
    """MustDrop's third stage: layers from the first cut on hold what the last one left, and the
    answer's tokens; without it each holds what was left there."""
    tiny = build("llava")
    inputs, held = tiny.inputs([1]), {}
    for cache in (True, False):
        with sieve(tiny.model, "mustdrop-llm", 0.2, output_cache=cache) as report:
            out = tiny.model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        held[cache] = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    first = report.calls[0].stages[0].layer
    assert held[True][:first] == held[False][:first]
    assert set(held[True][first:]) == {held[False][-1]}
    assert len(set(held[False][first:])) > 1


def test_a_method_inside_is_told_what_was_protected(monkeypatch):
    """MustDrop's key set: 8 % of a picture's tokens, all of them left at the end."""
    tiny, told = build("llava"), []
    right = MustDropLLM.reduce

    def reduce(self, vision, counts, text=None):
        told.append(vision.signals["protected"][0].bool())
        made = right(self, vision, counts, text)
        assert bool((made.kept[0] >= told[-1]).all())
        return made

    monkeypatch.setattr(MustDropLLM, "reduce", reduce)
    both(tiny.model, tiny.inputs([1]), ("mustdrop", "mustdrop-llm"), (0.6, 0.3))
    tokens = len(told[0])
    assert {int(key.sum()) for key in told} == {math.ceil(0.08 * tokens)}
    assert len(told) > 1
