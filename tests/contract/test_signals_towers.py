"""What is told of every tower's attention is what eager attention computes, patch by patch; which
patches make a token is read off the model's own gradients."""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from families import decoders, tiny
from tokensieve.errors import UnsupportedError
from tokensieve.hf.attention import signals
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.fingerprint import encoder_info
from tokensieve.hf.families.towers import attention_in, encoder_layers, has_cls, tower_of
from tokensieve.types import Kind, Signal

OTHERS = (
    "dinov2_llava",
    "aya_vision",
    "cohere2_vision",
    "glm4v",
    "qwen3_vl_moe",
    "qwen3_5",
    "lfm2_vl",
    "idefics2",
)
OF = dict.fromkeys(tiny.NAMES, tiny.build) | dict.fromkeys(OTHERS, decoders.build)
TOLD = {"llava", "llava_next", "qwen2_5_vl", "vipllava", "pixtral_llava", "mistral3"}
TOLD |= {"llava_onevision", "internvl", "qwen2_vl", "qwen3_vl", "idefics3", "smolvlm", "gemma3"}
TOLD |= {"paligemma", "fused_llava", "fused_internvl", *OTHERS} - {"idefics2"}
REFUSED = {
    "fused_siglip": "each token is made of patches of its own",
    "idefics2": "knows how 8 patches make a token",  # a resampler looks at all of them
}
CLOSE = {"rtol": 0, "atol": 2e-6}
BLOCK = 1


@contextmanager
def maps_of(model, attention):
    """(H, Q, K) of every run of one attention module, as eager attention returns it."""
    code, found = sys.modules[type(attention).__module__], []
    right, before = code.eager_attention_forward, attention.config._attn_implementation

    def eager(module, *args, **kwargs):
        out, weights = right(module, *args, **kwargs)
        if module is attention:
            found.extend(weights)
        return out, weights

    code.eager_attention_forward = eager
    tower_of(model).set_attn_implementation("eager")
    try:
        yield found
    finally:
        code.eager_attention_forward = right
        tower_of(model).set_attn_implementation(before)


def patches_by_gradient(model, inputs):
    """Per picture and row of the LLM the patches, by their row in the encoder, it is made of."""
    held = []

    def leaf(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        held.append(hidden.detach().requires_grad_())
        return (held[-1], *output[1:]) if isinstance(output, tuple) else held[-1]

    read = encoder_layers(model)[encoder_info(model).block]  # the last the VLM reads
    handle = read.register_forward_hook(leaf, prepend=True)
    try:
        with torch.enable_grad():
            encoded = encode(model, inputs)
    finally:
        handle.remove()
    cls, found = int(has_cls(model)), []
    for rows, packing in zip(encoded.images, encoded.packings, strict=True):
        for row, origin in zip(rows.flatten(0, -2), packing.origin_N.tolist(), strict=True):
            if origin < 0:
                continue
            grads = torch.autograd.grad(row.sum(), held, retain_graph=True, allow_unused=True)
            flat = [
                (torch.zeros_like(h) if g is None else g)[..., cls:, :].abs().sum(-1).flatten()
                for g, h in zip(grads, held, strict=True)
            ]
            found.append((torch.cat(flat) > 0).nonzero().flatten())
    return found


def check(make, name):
    """Every kind of signal of every token, by its patches as the gradients tell them."""
    model, inputs = make(name).model, make(name).inputs([1, 1])
    if name == "lfm2_vl":
        shrink(inputs)
    attention = attention_in(encoder_layers(model)[BLOCK])
    asked = [Signal(kind, BLOCK) for kind in (Kind.RECEIVED_ATTENTION, Kind.CLS_ATTENTION)]
    encoded = encode(model, inputs, signals=asked)
    with maps_of(model, attention) as maps, torch.no_grad():
        encode(model, inputs)
    cls, made = int(has_cls(model)), patches_by_gradient(model, inputs)
    maps = [whole.mean(0) for whole in maps]
    real = [(whole > 0).any(0) for whole in maps]  # padding is looked at by none
    received = torch.cat([m[r].sum(0)[cls:] for m, r in zip(maps, real, strict=True)])
    looked = torch.cat([m[0, cls:] for m in maps]) if cls else received
    at = 0
    for i, packing in enumerate(encoded.packings):
        places = packing.origin_N[packing.origin_N >= 0]
        mine = made[at : at + len(places)]
        at += len(places)
        queries = cls + packing.length * len(mine[0])
        for signal, values in zip(asked, (received, looked), strict=True):
            summed = signal.kind is Kind.RECEIVED_ATTENTION or not cls
            want = torch.stack([values[patches].mean() for patches in mine])
            got = encoded.signals[signal][i].flatten()[places]
            assert_close(got, want / queries if summed else want, **CLOSE)
    assert at == len(made)


def shrink(inputs):
    """The second picture of LFM2-VL is smaller: the encoder pads it."""
    inputs["spatial_shapes"][1] = torch.tensor([4, 6])
    inputs["pixel_attention_mask"][1, 24:] = 0
    ids = inputs["input_ids"][1]
    at = (ids == tiny.IMAGE).nonzero().flatten()[6:]
    ids[at] = 7


@pytest.mark.parametrize("name", [name for name in OF if name not in REFUSED])
def test_signals_are_those_of_eager_attention(name):
    try:
        check(OF[name], name)
    except UnsupportedError:
        assert name not in TOLD, f"{name}'s encoder is no longer heard"


@pytest.mark.parametrize("name", REFUSED)
def test_tokens_without_patches_of_their_own_are_refused(name):
    made = OF[name](name)
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        encode(made.model, made.inputs([1]), signals=[Signal(Kind.KEYS, BLOCK)])


def test_the_check_bites_where_patches_go_to_other_tokens(monkeypatch):
    right = signals.patches_of_tokens
    monkeypatch.setattr(signals, "patches_of_tokens", lambda *a: right(*a).roll(1, 0))
    for name in ("qwen2_5_vl", "lfm2_vl"):
        with pytest.raises(AssertionError):
            check(OF[name], name)
