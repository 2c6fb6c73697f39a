"""Cuts inside LLMs whose layers are not all alike: windows count places of the whole prompt,
layers without attention run over what is left."""

from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from contract import test_llm_signals as heard
from families import inside
from families.checks import CLOSE, NEW, answer
from families.decoders import FULL, HYBRID, WINDOW, WINDOWED, build
from families.inside import blocked, cut, kept_positions
from families.methods import Inside, InsideRagged
from tokensieve.errors import UnsupportedError
from tokensieve.hf.llm import masks
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import get_method
from tokensieve.types import Kind

TWO = {1: 0.6, 2: 0.3}
every = pytest.mark.parametrize("name", [*WINDOWED, *FULL])
hybrid = pytest.mark.parametrize("name", HYBRID)


@every
@pytest.mark.parametrize("layer", [1, TWO], ids=str)
def test_dropped_tokens_are_as_if_not_looked_at(name, layer):
    inside.check_blocked(build(name), layer)


@pytest.mark.parametrize("name", ["gemma3", "cohere2_vision"])
def test_the_same_under_eager_attention(name):
    inside.check_blocked(build(name, "eager"), TWO)


@pytest.mark.parametrize("name", [*WINDOWED, *FULL, *HYBRID])
def test_a_padded_prompt_is_answered_as_alone(name):
    inside.check_alone(build(name), 1)


@pytest.mark.parametrize("name", [*WINDOWED, *FULL, *HYBRID])
def test_keeping_all_changes_nothing(name):
    inside.check_identity(build(name), 1)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5"])
def test_everything_is_put_back(name):
    inside.check_restored(build(name))


@pytest.mark.parametrize("name", ["gemma3", "aya_vision", "glm4v"])
def test_beams(name):
    def beams(model, inputs):
        return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, num_beams=3)

    tiny = build(name)
    inputs = tiny.inputs([1, 1])
    tokens, call = cut(tiny.model, inputs, InsideRagged(), TWO, beams)
    with blocked(tiny.model, inputs, call.stages):
        assert torch.equal(tokens, beams(tiny.model, inputs))


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_a_window_is_shorter_than_the_prompt_and_its_cache_no_longer(name):
    def lengths(model, inputs):
        out = model.generate(
            **inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True
        )
        return [layer.keys.shape[-2] for layer in out.past_key_values.layers]

    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    got, call = cut(tiny.model, inputs, Inside(), 1, lengths)
    left = int(kept_positions(tiny.model, inputs, call.stages[0]).sum(-1).max())
    assert left < inputs["input_ids"].shape[1]
    windows = inside.windows_of(tiny.model)
    assert WINDOW in windows
    assert got == [left + 1 if window is None else window - 1 for window in windows]


def counts_what_is_left(self, gather, decoded, new, window):
    """A window over tokens left, as a cache by itself would have it."""
    T = gather.index_BT.shape[1]
    ones = gather.real_BT.new_ones(len(gather.real_BT), decoded + new)
    real_BK = torch.cat([gather.real_BT, ones], 1)
    place = torch.arange(T + decoded + new)
    at = place[-new:, None]
    seen = real_BK[:, None] & (place <= at)
    return seen if window is None else seen & (at - place < window)


def test_the_check_bites_where_a_window_counts_what_is_left(monkeypatch):
    inside.check_blocked(build("gemma3"), 1)
    monkeypatch.setattr(masks.Masks, "_seen", counts_what_is_left)
    with pytest.raises(AssertionError):
        inside.check_blocked(build("gemma3"), 1)


@pytest.mark.parametrize("kind", [Kind.LAST_ATTENTION, Kind.TEXT_ATTENTION])
@pytest.mark.parametrize(("name", "layer"), [("gemma3", 1), ("gemma3_full_first", TWO)])
def test_signals_of_a_layer_with_a_window_are_those_of_eager_attention(
    name, layer, kind, monkeypatch
):
    monkeypatch.setattr(heard, "build", build)
    heard.check(name, kind, layer, heard.REFERENCES[kind])
    heard.forget_masks(monkeypatch)
    heard.check(name, kind, layer, heard.REFERENCES[kind])  # counted by hand where none is told
    monkeypatch.setattr("tokensieve.hf.llm.inside.window_of", lambda *_: None)
    with pytest.raises(AssertionError):
        heard.check(name, kind, layer, heard.REFERENCES[kind])


def test_flash_attention_is_refused_beyond_its_window(monkeypatch):
    tiny = build("gemma3")
    monkeypatch.setattr(masks.Masks, "flash", True)
    with pytest.raises(UnsupportedError, match=rf"at most {WINDOW} places, the window of layer 2"):
        cut(tiny.model, tiny.inputs([1]), Inside(), 1)


@contextmanager
def shorter(model, left_S, layer):
    """Layers from `layer` on are run over what is left alone: no cache, no padding."""
    layers = inside.layers_of(model)
    handles = []
    for number in range(layer, len(layers)):

        def before(_module, args, kwargs, number=number):
            total = kwargs["position_embeddings"][0].shape[-2]
            keep = torch.cat([left_S, left_S.new_ones(total - len(left_S))])
            hidden = args[0][:, keep] if number == layer else args[0]
            rotary = tuple(values[..., keep, :] for values in kwargs["position_embeddings"])
            return (hidden,), {**kwargs, "attention_mask": None, "position_embeddings": rotary}

        handles.append(layers[number].register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@hybrid
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layers_without_attention_run_over_what_is_left(name, layer):
    """Each new token as of a model whose later layers are handed what is left, without a cache."""
    tiny = build(name)
    model, inputs = tiny.model, tiny.inputs([2])
    (tokens, logits), call = cut(model, inputs, Inside(), layer)
    left_S = kept_positions(model, inputs, call.stages[0])[0]
    assert not bool(left_S.all())
    for step in range(NEW):
        more = tokens[:, :step]
        zeros = torch.zeros_like(more)
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
        longer["attention_mask"] = torch.cat([inputs["attention_mask"], zeros + 1], 1)
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            longer["mm_token_type_ids"] = torch.cat([types, zeros.to(types.dtype)], 1)
        with torch.no_grad(), shorter(model, left_S, layer):
            wanted = model(**longer, use_cache=False).logits[:, -1]
        assert_close(logits[:, step], wanted, **CLOSE)


@hybrid
def test_a_layer_without_attention_has_none_to_tell(name):
    tiny = build(name)
    with (
        pytest.raises(UnsupportedError, match="Expected attention in layer 2 of the LLM"),
        sieve(tiny.model, get_method("fastv"), 0.5, layer=3),
    ):
        answer(tiny.model, tiny.inputs([1]))


@hybrid
def test_at_a_layer_without_attention_the_one_before_is_heard(name):
    """PyramidDrop reads the layer at its cut, where it has attention: FastV's layer elsewhere."""
    tiny, kept = build(name), {}
    for method in ("pyramiddrop", "fastv"):
        _, call = cut(tiny.model, tiny.inputs([2]), get_method(method), 2)
        kept[method] = [crop.kept.tolist() for crop in call.prompts[0].images[0].crops]
    assert kept["pyramiddrop"] == kept["fastv"]
