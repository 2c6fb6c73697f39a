"""Tokens dropped at layers of the LLM: exact against a model that may not look at them."""

import pytest
import torch
from torch.testing import assert_close
from transformers import StaticCache

from families import inside
from families.checks import CLOSE, NEW, answer
from families.inside import blocked, cut, kept_positions
from families.methods import (
    ByNorm,
    Doubled,
    Inside,
    InsideDoubled,
    InsidePeek,
    InsidePoisoned,
    InsideRagged,
    Smaller,
)
from families.tiny import NAMES, REQUIRED, build, question_of
from tokensieve.errors import BudgetError, ConfigError, PromptError, UnsupportedError
from tokensieve.hf.families.table import FAMILIES, Family
from tokensieve.hf.llm.cut import prefill_mask
from tokensieve.hf.plan import require_layers
from tokensieve.hf.prompt.compaction import Gather
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.methods.registry import get_method

ROWS = {"pixtral_llava": "llava", "fused_siglip": "fused_llava", "fused_internvl": "fused_llava"}
FAMILY_NAMES = [n for n in NAMES if FAMILIES.get(ROWS.get(n, n), Family()).stages]
every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
LAYERS = (1, 2, {1: 0.6, 2: 0.3})
every_cut = pytest.mark.parametrize("layer", LAYERS, ids=str)


def test_the_required_families_are_verified():
    assert set(REQUIRED) <= set(FAMILY_NAMES)


@every_family
@every_cut
@pytest.mark.one_of_each
def test_dropped_tokens_are_as_if_not_looked_at(name, layer):
    inside.check_blocked(build(name), layer)
    inside.check_blocked(build(name), layer, pictures=(2, 0, 1))


@every_family
def test_the_same_under_eager_attention(name):
    inside.check_blocked(build(name, "eager"), {1: 0.6, 2: 0.3})


@every_family
@every_cut
@pytest.mark.one_of_each
def test_a_padded_prompt_is_answered_as_alone(name, layer):
    inside.check_alone(build(name), layer)


@every_family
@every_cut
@pytest.mark.one_of_each
def test_each_layer_caches_what_is_left_there(name, layer):
    inside.check_cache(build(name), layer)


@every_family
@pytest.mark.parametrize("layer", [1, {1: 1.0, 2: 1.0}], ids=str)
@pytest.mark.one_of_each
def test_keeping_all_changes_nothing(name, layer):
    inside.check_identity(build(name), layer)


@every_family
@pytest.mark.parametrize("method", [Inside, InsidePoisoned])
@pytest.mark.one_of_each
def test_everything_is_put_back(name, method):
    inside.check_restored(build(name), method)


@every_family
def test_beams(name):
    def beams(model, inputs):
        return model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, num_beams=3, num_return_sequences=2
        )

    tiny = build(name)
    inputs = tiny.inputs([1, 1])
    tokens, call = cut(tiny.model, inputs, InsideRagged(), {1: 0.6, 2: 0.3}, beams)
    with blocked(tiny.model, inputs, call.stages):
        assert torch.equal(tokens, beams(tiny.model, inputs))


@every_family
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.one_of_each
def test_a_forward_gives_the_prompt_its_length_back(name, cached):
    @torch.no_grad()
    def forward(model, inputs):
        return model(**inputs, use_cache=cached).logits

    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    logits, call = cut(tiny.model, inputs, InsideRagged(), 1, forward)
    kept = kept_positions(tiny.model, inputs, call.stages[0])
    with blocked(tiny.model, inputs, call.stages):
        wanted = forward(tiny.model, inputs)
    assert_close(logits[kept], wanted[kept], **CLOSE)
    assert float(logits[~kept].abs().max()) == 0.0


@every_family
def test_going_on_by_hand(name):
    tiny = build(name)
    model, inputs = tiny.model, tiny.inputs([1])
    steps = torch.tensor([[7], [9]])

    @torch.no_grad()
    def decode(model, inputs):
        cache, mask, logits = None, inputs["attention_mask"], []
        out = model(**inputs, use_cache=True)
        last = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
        for i, step in enumerate(steps, 1):
            cache, mask = out.past_key_values, torch.cat([mask, torch.ones(1, 1).long()], 1)
            out = model(input_ids=step[None], past_key_values=cache, attention_mask=mask,
                        position_ids=last[..., -1:] + i)  # fmt: skip
            logits.append(out.logits)
        return torch.cat(logits, 1)

    logits, call = cut(model, inputs, Inside(), 1, decode)
    with blocked(model, inputs, call.stages):
        assert_close(logits, decode(model, inputs), **CLOSE)


@every_family
def test_a_method_is_shown_what_enters_the_layer(name):
    tiny = build(name)
    model, inputs, method = tiny.model, tiny.inputs([1, 1]), InsidePeek([])
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[2]
    cut(model, inputs, method, 2, lambda m, i: m(**i))
    place = inputs["input_ids"] == model.config.image_token_id
    text_BS = question_of(name, inputs)
    shown = {len(text.embeds): (vision, text) for vision, text in method.seen}
    for b, packing in enumerate(encode(model, inputs).packings):
        vision, text = shown[int(text_BS[b].sum())]
        real = packing.origin_N >= 0
        assert_close(vision.tokens.flatten(0, 1)[packing.origin_N[real]], states[b][place[b]][real])
        assert_close(text.embeds, states[b][text_BS[b]])


@every_family
def test_new_values_take_the_place_of_the_old(name):
    """Doubled inside = a model whose layer is handed those hidden states doubled."""
    tiny = build(name)
    model, inputs = tiny.model, tiny.inputs([1, 2])
    (_, logits), call = cut(model, inputs, InsideDoubled(), 1)
    tokens = kept_positions(model, inputs, call.stages[0])
    tokens &= inputs["input_ids"] == model.config.image_token_id
    structural = torch.cat([p.origin_N < 0 for p in encode(model, inputs).packings])
    place = inputs["input_ids"] == model.config.image_token_id
    tokens &= ~torch.zeros_like(place).masked_scatter(place, structural)

    def double(_module, args):
        if args[0].shape[1] == tokens.shape[1]:
            return (torch.where(tokens[..., None], args[0] * 2, args[0]), *args[1:])
        return args

    hook = inside.layers_of(model)[1].register_forward_pre_hook(double)
    with blocked(model, inputs, call.stages):
        _, wanted = answer(model, inputs)
    hook.remove()
    assert_close(logits, wanted, **CLOSE)
    assert float((cut(model, inputs, Inside(), 1)[0][1] - logits).abs().max()) > 1e-3


@every_family
def test_a_choice_made_before_the_llm_takes_effect_at_a_layer(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    short = compress(tiny.model, inputs, ByNorm(), 0.5)
    (_, logits), call = cut(tiny.model, inputs, ByNorm(), 1)
    for now, then in zip(call.prompts, short.report.calls[0].prompts, strict=True):
        for a, b in zip(now.images, then.images, strict=True):
            assert all(torch.equal(x.kept, y.kept) for x, y in zip(a.crops, b.crops, strict=True))
    with blocked(tiny.model, inputs, call.stages):
        assert_close(logits, answer(tiny.model, inputs)[1], **CLOSE)


def test_flash_attention_is_always_told_what_is_real():
    """Without a mask it takes gaps in position ids for the ends of packed prompts."""
    keep = torch.tensor([[True, False, True, True]])
    gather = Gather.of(keep, left=True)
    assert torch.equal(prefill_mask(None, gather, flash=True), torch.ones(1, 3).long())
    assert prefill_mask(None, gather, flash=False) is None
    padded = Gather.of(torch.cat([keep, ~keep]), left=True)
    assert prefill_mask(None, padded, flash=True).tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_report_says_where_and_how_much():
    tiny = build("llava")
    with sieve(tiny.model, Inside(), layer={1: 8, 2: 8}) as report:
        tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    call = report.calls[0]
    assert [(stage.layer, stage.kept_tokens) for stage in call.stages] == [(1, 8), (2, 8)]
    assert call.tokens_by_layer(3) == [16, 8, 8]
    assert "8 of 16 visual tokens (50%) from layer 1 and 2 of the LLM on" in str(report)
    assert call.ms["select"] > 0


def test_prompts_without_pictures_pass():
    tiny = build("llava")
    ids = torch.tensor([[1, 2, 7, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    (tokens, _), call = cut(tiny.model, inputs, Inside(), 1)
    assert torch.equal(tokens, answer(tiny.model, inputs)[0])
    assert call.stages == ()


def test_training_goes_through():
    tiny = build("llava")
    tiny.model.zero_grad()
    with sieve(tiny.model, Inside(), 0.5, layer=1):
        out = tiny.model(**tiny.inputs([1, 2]), labels=tiny.inputs([1, 2])["input_ids"])
    out.loss.backward()
    grads = [p.grad for p in inside.layers_of(tiny.model)[0].parameters()]
    tiny.model.zero_grad()
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)


def generate(**options):
    return lambda model, inputs: model.generate(**inputs, max_new_tokens=2, **options)


def own_cache(model, inputs):
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=200)
    return model.generate(**inputs, max_new_tokens=2, past_key_values=cache)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (generate(cache_implementation="static"), "Expected a DynamicCache .* Got StaticCache"),
        (own_cache, "Expected a DynamicCache .* Got StaticCache"),
        (generate(use_cache=False), "with a cache .* Got use_cache=False"),
        (generate(prompt_lookup_num_tokens=2), "plain decoding .* Got prompt_lookup_num_tokens"),
    ],
)
def test_what_generate_cannot_do_is_said(call, message):
    tiny = build("llava")
    answer(tiny.model, tiny.inputs([1]))  # Transformers leaves hooks of its own at the first run
    hooks = inside.hooks_on(tiny.model)
    with pytest.raises(UnsupportedError, match=message):
        cut(tiny.model, tiny.inputs([1]), Inside(), 1, call)
    assert inside.hooks_on(tiny.model) == hooks


@pytest.mark.parametrize(
    ("method", "layer", "error", "message"),
    [
        (Inside, 3, ConfigError, "`layer` from 1 to 2, .* Got 3"),
        (Inside, 0, ConfigError, "`layer` from 1 to 2, .* Got 0"),
        (Inside, None, ConfigError, "Expected `layer` beside 'Inside'"),
        (Inside, {}, ConfigError, "at least one layer"),
        (Inside, {1: 0.2, 2: 0.4}, ConfigError, "no more tokens at a later layer"),
        (Inside, {1: 1.5}, BudgetError, "Expected `keep`"),
        (ByNorm, {1: 0.5, 2: 0.2}, ConfigError, "one layer beside 'ByNorm'"),
        (Smaller, 1, UnsupportedError, "drops tokens. Got 'Smaller'"),
    ],
)
def test_wrong_layers_are_said(method, layer, error, message):
    with pytest.raises(error, match=message), sieve(build("llava").model, method(), layer=layer):
        pass


@pytest.mark.parametrize("layer", ["2", 1.5, [1]])
def test_what_is_no_layer_is_said(layer):
    with pytest.raises(ConfigError, match=r"as a layer's number, .* Got .* whole K from 1 to 3"):
        require_layers(layer, 4)


def test_new_tokens_made_before_the_llm_have_no_place_in_it():
    tiny = build("llava")
    with pytest.raises(UnsupportedError, match="Got 'Doubled' with `layer`, which makes new"):
        cut(tiny.model, tiny.inputs([1]), Doubled(), 1)


def test_positions_cannot_be_renumbered_inside():
    with (
        pytest.raises(ConfigError, match="Expected positions='keep'"),
        sieve(build("llava").model, Inside(), layer=1, positions="renumber"),
    ):
        pass


def test_compress_does_not_reach_inside():
    tiny = build("llava")
    with pytest.raises(UnsupportedError, match="inside it, where `compress` does not reach"):
        compress(tiny.model, tiny.inputs([1]), Inside(), 0.5)


def test_families_not_verified_are_refused(monkeypatch):
    monkeypatch.setitem(FAMILIES, "llava", Family())
    with (
        pytest.raises(UnsupportedError, match="whose LLM can be cut at a layer"),
        sieve(build("llava").model, Inside(), layer=1),
    ):
        pass


def test_a_cut_may_not_stand_among_the_layers_that_get_the_encoders_features():
    tiny = build("qwen3_vl")
    inside.check_blocked(tiny, 1)  # its encoder hands features of one layer
    tiny.model.config.vision_config.deepstack_visual_indexes = [0, 1]
    try:
        with (
            pytest.raises(ConfigError, match=r"Expected a layer from 2 on: .* Got 1. Pass layer=K"),
            sieve(tiny.model, Inside(), 0.5, layer={1: 0.6, 2: 0.3}),
        ):
            pass
    finally:
        tiny.model.config.vision_config.deepstack_visual_indexes = [1]


def test_a_prompt_of_which_nothing_stays_is_named():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    ids = inputs["input_ids"]
    ids = ids[ids == tiny.model.config.image_token_id][None]
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(PromptError, match="nothing stays from layer 1 of the LLM on"):
        cut(tiny.model, inputs, get_method("vtw"), 1)


def test_gradient_checkpointing_is_refused():
    tiny = build("llava")
    tiny.model.train()
    tiny.model.gradient_checkpointing_enable()
    try:
        with pytest.raises(UnsupportedError, match="no gradient checkpointing"):
            cut(tiny.model, tiny.inputs([1]), Inside(), 1, lambda m, i: m(**i))
    finally:
        tiny.model.gradient_checkpointing_disable()
        tiny.model.eval()
