"""What a method is told of the encoder's attention is what eager attention computes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close
from transformers.vision_utils import get_vision_window_index

from families.tiny import build
from tokensieve.errors import ConfigError, NonFiniteError, UnsupportedError
from tokensieve.functional.attention import attention_rows, received_attention
from tokensieve.hf.attention.tap import tapped
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.towers import attention_in, encoder_layers, has_cls
from tokensieve.hf.sieve import compress, sieve
from tokensieve.methods.base import ScoringMethod
from tokensieve.types import Kind, Signal, Site

FAMILIES = ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl"]
FAMILIES += ["fused_llava", "fused_internvl"]
KINDS = [Kind.CLS_ATTENTION, Kind.CLS_UNSPLIT, Kind.RECEIVED_ATTENTION, Kind.KEYS]
KINDS += [Kind.ALL_KEYS]


@dataclass(frozen=True)
class ByAttention(ScoringMethod):
    """Keep what CLS looks at."""

    site = Site.FEATURES

    def signals(self, encoder):
        return {"attention": Signal(Kind.CLS_ATTENTION, encoder.block)}

    def scores(self, vision, text=None):
        return vision.signal("attention")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_cls_attention_is_what_an_eager_tower_returns(implementation):
    tiny = build("llava")
    tower, inputs = tiny.model.base_model.vision_tower, tiny.inputs([1, 2])
    signal = Signal(Kind.CLS_ATTENTION, encoder_info(tiny.model).block)
    before = tower.config._attn_implementation
    try:
        tower.set_attn_implementation(implementation)
        got = encode(tiny.model, inputs, signals=[signal]).signals[signal]
        tower.set_attn_implementation("eager")
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions[signal.block]
    finally:
        tower.set_attn_implementation(before)
    assert_close(torch.cat(got), maps.mean(1)[:, 0, 1:])


def test_unsplit_attention_is_one_product_of_full_width():
    tiny = build("llava")
    layer = encoder_layers(tiny.model)[0]
    found = {}
    hooks = [
        part.register_forward_hook(lambda _m, _a, out, name=name: found.update({name: out}))
        for name, part in (("q", layer.self_attn.q_proj), ("k", layer.self_attn.k_proj))
    ]
    signals = [Signal(kind, 0) for kind in (Kind.CLS_UNSPLIT, Kind.ALL_KEYS)]
    told = encode(tiny.model, tiny.inputs([1]), signals=signals).signals
    for hook in hooks:
        hook.remove()
    q, k = found["q"][:, :1], found["k"]
    want = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)[:, 0, 1:]
    assert_close(told[signals[0]][0], want)
    assert_close(told[signals[1]][0], k[:, 1:])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.one_of_each
def test_signals_lie_along_the_tokens(family, kind):
    """One number (or key) per token; those of a picture alone are those in a batch."""
    tiny = build(family)
    signal = Signal(kind, 1)
    both = encode(tiny.model, tiny.inputs([1, 1]), signals=[signal])
    alone = encode(tiny.model, tiny.inputs([1]), signals=[signal])
    for encoded in (both, alone):
        for found, packing in zip(encoded.signals[signal], encoded.packings, strict=True):
            assert found.shape[:2] == (packing.crops, packing.length)
            assert found.ndim == (3 if "keys" in kind else 2)
    assert_close(both.signals[signal][0], alone.signals[signal][0])


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_without_cls_attention_is_the_mean_received(family):
    tiny = build(family)
    assert not has_cls(tiny.model)
    cls, received = (Signal(kind, 1) for kind in (Kind.CLS_ATTENTION, Kind.RECEIVED_ATTENTION))
    encoded = encode(tiny.model, tiny.inputs([1]), signals=[cls, received])
    assert_close(encoded.signals[cls][0], encoded.signals[received][0])
    per_crop = encoded.signals[received][0].sum(-1)
    merged = tiny.model.config.vision_config.spatial_merge_size**2 if "qwen" in family else 1
    assert_close(per_crop * merged, torch.ones_like(per_crop))  # a mean over queries


def test_pixel_shuffled_patches_go_to_their_token():
    """InternVL: an attention layer that looks at one patch only shows in that patch's token."""
    tiny = build("internvl")
    signal = Signal(Kind.KEYS, 0)
    encoded = encode(tiny.model, tiny.inputs([1]), signals=[signal])
    module = attention_in(encoder_layers(tiny.model)[0])
    seen = []
    with tapped([module], lambda m, q, k, scaling, mask: seen.append(k)):
        encode(tiny.model, tiny.inputs([1]))
    patches = seen[0].mean(1)[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    grid = patches.view(len(patches), side // 2, 2, side // 2, 2, -1)
    want = grid.mean((2, 4)).flatten(1, 2)
    assert_close(encoded.signals[signal][0], want)


def test_windowed_patches_go_to_their_token():
    """Qwen2.5-VL: keys come in window order; tokens are told in the LLM's, as its features are."""
    tiny = build("qwen2_5_vl")
    signal, inputs = Signal(Kind.KEYS, 2), tiny.inputs([1, 1])
    seen = []
    module = attention_in(encoder_layers(tiny.model)[2])
    with tapped([module], lambda m, q, k, scaling, mask: seen.append(k)):
        got = encode(tiny.model, inputs, signals=[signal]).signals[signal]
    vision = tiny.model.config.vision_config
    index, _ = get_vision_window_index(
        inputs["image_grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    in_windows = torch.cat([k.mean(1)[0] for k in seen]).view(len(index), 4, -1).mean(1)
    assert_close(torch.cat([s[0] for s in got]), in_windows[torch.argsort(torch.as_tensor(index))])
    assert not torch.equal(torch.as_tensor(index), torch.arange(len(index)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_in_parts_are_the_whole_map(dtype):
    """Grouped heads, additive and boolean masks, more queries than one part."""
    g = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(2, 4, 300, 8, generator=g).to(dtype),
        torch.randn(2, 2, 300, 8, generator=g).to(dtype),
    )
    seen = torch.ones(300, 300, dtype=torch.bool).tril()[None, None]
    added = torch.zeros(1, 1, 300, 300).masked_fill(~seen, torch.finfo(torch.float32).min)
    wide = k.repeat_interleave(2, 1).double()
    logits = (q.double() @ wide.transpose(-1, -2)) * 0.3
    for mask in (None, seen, added):
        shown = logits if mask is None else logits.masked_fill(~seen, -torch.inf)
        want = shown.softmax(-1).mean(1)
        assert_close(
            received_attention(q, k, 0.3, mask).double(), want.sum(1), rtol=1e-4, atol=1e-5
        )
        rows = mask if mask is None else mask[..., 7:9, :]
        assert_close(
            attention_rows(q[:, :, 7:9], k, 0.3, rows).double(), want[:, 7:9], rtol=1e-4, atol=1e-6
        )


def test_a_row_that_sees_nothing_is_zero():
    q = torch.ones(1, 1, 1, 2)
    hidden = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    assert_close(attention_rows(q, torch.ones(1, 1, 3, 2), 1.0, hidden), torch.zeros(1, 1, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tap_changes_nothing_and_goes(family):
    tiny = build(family)
    inputs = tiny.inputs([1])
    modules = [attention_in(layer) for layer in encoder_layers(tiny.model)]
    configs = [module.config for module in modules]
    want = encode(tiny.model, inputs).images
    calls = []
    with tapped(modules, lambda *seen: calls.append(seen)):
        got = encode(tiny.model, inputs).images
    assert len(calls) >= len(modules)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="on purpose"), tapped(modules, _fail):
        encode(tiny.model, inputs)
    assert all(m.config is c for m, c in zip(modules, configs, strict=True))


def _fail(*_seen):
    raise RuntimeError("on purpose")


def test_a_method_is_told_in_a_sieve_and_by_compress():
    tiny = build("llava_next")
    inputs = tiny.inputs([1, 2])
    short = compress(tiny.model, inputs, ByAttention(), 0.4)
    with sieve(tiny.model, ByAttention(), 0.4) as report:
        tiny.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    crops = [
        [c.kept.tolist() for p in r.calls[0].prompts for i in p.images for c in i.crops]
        for r in (short.report, report)
    ]
    assert crops[0] == crops[1]
    signal = Signal(Kind.CLS_ATTENTION, encoder_info(tiny.model).block)
    found = encode(tiny.model, inputs, signals=[signal]).signals[signal][0][0]
    count = len(crops[0][0])
    assert sorted(found.topk(count).indices.tolist()) == crops[0][0]


def test_gradient_checkpointing_runs_layers_twice_and_changes_nothing():
    tiny = build("llava")
    model, inputs = tiny.model, tiny.inputs([1, 2])
    first = encoder_layers(model)[0]
    model.train()
    grads = []
    try:
        for _ in range(2):
            model.zero_grad()
            with sieve(model, ByAttention(), 0.5):
                loss = model(**inputs, labels=inputs["input_ids"]).loss
            loss.backward()
            grads.append([p.grad.clone() for p in first.parameters()])
            model.gradient_checkpointing_enable()
    finally:
        model.gradient_checkpointing_disable()
        model.zero_grad()
        model.eval()
    assert_close(*grads)


def test_what_cannot_be_told_is_an_error():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    with pytest.raises(UnsupportedError, match="Expected the signal 'attention'"):
        compress(tiny.model, encode(tiny.model, inputs), ByAttention(), 0.4)
    with pytest.raises(ConfigError, match="encoder layer from 0 to 2"):
        encode(tiny.model, inputs, signals=[Signal(Kind.KEYS, 3)])
    with pytest.raises(ConfigError, match="signal of an encoder layer"):
        encode(tiny.model, inputs, signals=[Signal(Kind.LAST_ATTENTION, 1)])
    inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], float("nan"))
    with pytest.raises(NonFiniteError, match="layer 1 of the vision encoder"):
        encode(tiny.model, inputs, signals=[Signal(Kind.CLS_ATTENTION, 1)])
    with (
        pytest.raises(UnsupportedError, match="attention interface"),
        tapped([torch.nn.Linear(1, 1)], _fail),
    ):
        pass
