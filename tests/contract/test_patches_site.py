"""Fewer patches into the encoder: exact to the encoder that may not look at the others."""

from __future__ import annotations

import pytest
import torch

from families import fewer
from families.checks import answer
from families.fewer import FAMILIES, HYBRID, NEW, Lively, build, first_rows
from families.inside import hooks_on
from families.methods import ByNorm
from families.registry import kept_of, rows_of
from families.said import require_same, require_tokens
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf.encoder.fewer import FewerPatches
from tokensieve.hf.encoder.rows import PackedRows
from tokensieve.hf.families.towers import PATCH_ROWS, encoder_layers
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.types import Site

every_family = pytest.mark.parametrize("name", FAMILIES)
# each stands for a way of handing patches on: windows, one row, a batch
varied = pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3", "llava_next"])


@every_family
def test_patches_that_go_are_as_if_they_could_not_be_looked_at(name):
    fewer.check_blocked(build(name), llm=name not in HYBRID)


@every_family
def test_alone_as_in_a_batch(name):
    fewer.check_alone(build(name))


@every_family
def test_keep_one_is_the_model_itself(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    tokens, logits = answer(tiny.model, inputs)
    for method in (Lively(), get_method("pixelprune")):  # noise is predicted by nothing
        with sieve(tiny.model, method, 1.0) as report:
            same_tokens, same = answer(tiny.model, inputs)
        claim = f"keep=1 before the encoder is not the identity on {name}"
        require_same(same, logits, claim)
        require_tokens(same_tokens, tokens, claim)
        assert report.kept_tokens == report.visual_tokens > 0


@pytest.mark.skipif(not NEW, reason="some of them came with 5.24")
def test_every_tower_of_the_table_has_a_family_here():
    kinds = {build(name).model.config.vision_config.model_type for name in FAMILIES}
    assert kinds == set(PATCH_ROWS)


# Variants of the code that are wrong in one thing each, and fail.


def all_in_one_window(self, bounds):
    return torch.tensor([0, int(self.kept_N.sum())], dtype=bounds.dtype)


def other_places(self, rows, dim):
    count = int(self.kept_N.sum())
    return rows.narrow(dim, 0, count) if dim == -2 else rows.narrow(-1, 0, count)


def in_front(self, short):
    return torch.nn.functional.pad(short, (0, 0, 0, self.kept.shape[-1] - short.shape[-2]))


@pytest.mark.parametrize(
    ("name", "method", "wrong"),
    [
        ("qwen2_5_vl", "bounds", all_in_one_window),
        ("qwen2_vl", "bounds", all_in_one_window),
        ("qwen3_vl", "cut", other_places),
        ("mistral3", "cut", other_places),
        ("mistral3", "_whole", in_front),
        ("llava", "_whole", in_front),
        ("llava", "_masked", lambda *_: None),
    ],
)
def test_a_wrong_run_is_found(name, method, wrong, monkeypatch):
    where = PackedRows if hasattr(PackedRows, method) else FewerPatches
    monkeypatch.setattr(where, method, wrong)
    with pytest.raises(AssertionError, match="is not as if it could not look"):
        fewer.check_blocked(build(name))


@every_family
def test_nothing_is_computed_for_what_goes(name):
    """Every layer of the encoder is handed the patches that stay, and no more."""
    tiny, seen = build(name), []
    inputs = tiny.inputs([1, 1])
    whole = first_rows(tiny.model, inputs).shape[-2]
    handles = [
        module.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[-2]))
        for layer in encoder_layers(tiny.model)
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        with sieve(tiny.model, Lively(), 0.5, **fewer.positions_of(tiny.model)):
            answer(tiny.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert 0 < max(seen) <= 0.5 * whole + 2  # CLS, and a crop's share rounded up


@varied
@torch.no_grad()
def test_a_sieve_and_compress_agree_and_nothing_stays_behind(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    before, hooks = answer(tiny.model, inputs), hooks_on(tiny.model)
    short = compress(tiny.model, inputs, "pixel-variance", 0.4, site="patches")
    tokens, logits = answer(tiny.model, short.inputs)
    again = compress(tiny.model, encode(tiny.model, inputs), "pixel-variance", 0.4, site="patches")
    require_same(rows_of(again), rows_of(short), "pictures encoded before are encoded anew")
    with sieve(tiny.model, "pixel-variance", 0.4, site="patches") as report:
        same_tokens, same = answer(tiny.model, inputs)
        forward = tiny.model(**inputs).logits
    require_same(same, logits, f"a sieve before the encoder of {name} differs from `compress`")
    require_tokens(same_tokens, tokens, "a sieve before the encoder differs from `compress`")
    assert forward.shape[1] == short.inputs["input_ids"].shape[1]
    assert {"encode", "select", "prefill"} <= set(report.calls[0].ms)
    assert hooks_on(tiny.model) == hooks
    with pytest.raises(RuntimeError, match="poisoned"):
        compress(tiny.model, inputs, Poisoned(), 0.4)
    assert hooks_on(tiny.model) == hooks
    require_same(answer(tiny.model, inputs)[1], before[1], "something stays on the model")


class Poisoned(Lively):
    """Goes wrong while it chooses."""

    def scores(self, vision, text=None):
        raise RuntimeError("poisoned")


@varied
def test_the_same_tokens_stay_as_before_the_llm(name):
    """The site changes what is computed, not what is chosen."""
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    for method in ("random", "stride", "pixel-variance"):
        for pool in ("crop", "image", "prompt"):
            first = compress(tiny.model, inputs, method, 0.4, pool=pool)
            second = compress(tiny.model, inputs, method, 0.4, pool=pool, site="patches")
            assert kept_of(first) == kept_of(second)
            assert (rows_of(first) - rows_of(second)).abs().max() > 1e-3


@varied
def test_a_pair_goes_on_inside_the_llm(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    first = get_method("random", site="patches")
    with sieve(tiny.model, (first, "fastv"), (0.6, 0.3)) as report:
        answer(tiny.model, inputs)
    early, late = report.calls[0].stages
    assert report.visual_tokens > early.kept_tokens > late.kept_tokens > 0
    alone = compress(tiny.model, inputs, first, 0.6).report
    assert early.kept_tokens == alone.kept_tokens


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_gradients_reach_the_encoder(name):
    tiny = build(name)
    inputs = tiny.inputs([1])
    inputs["labels"] = inputs["input_ids"]
    try:
        with sieve(tiny.model, Lively(), 0.5):
            tiny.model(**inputs).loss.backward()
        weights = [w for w in encoder_layers(tiny.model).parameters() if w.ndim == 2]
        assert weights
        assert all(w.grad is not None and bool(w.grad.any()) for w in weights[:4])
    finally:
        tiny.model.zero_grad(set_to_none=True)


def test_what_reads_the_encoder_cannot_act_before_it():
    for name in method_names():
        cls = method_class(name)
        if cls.trained or cls.site is Site.PATCHES:
            continue
        if cls.reads_tokens:
            with pytest.raises(UnsupportedError, match="Expected a method that reads pixels or"):
                get_method(name, site="patches")
        else:
            assert get_method(name, site="patches").site is Site.PATCHES
            assert get_method(name, site="embeds") == get_method(name)


def test_wrong_use_is_said():
    tiny = build("qwen2_vl")
    inputs = tiny.inputs([1])
    with pytest.raises(ConfigError, match="Expected `site` as 'patches', or left out"):
        compress(tiny.model, inputs, "random", 0.4, site="llm")
    with pytest.raises(UnsupportedError, match="for `recycle`"):
        compress(tiny.model, inputs, "random", 0.4, site="patches", recycle=True)
    with pytest.raises(UnsupportedError, match="with `layer`, which acts before the encoder"):
        sieve(tiny.model, "pixelprune", 0.4, layer=1).__enter__()
    encoded = compress(tiny.model, inputs, ByNorm(), 1.0).inputs
    with pytest.raises(UnsupportedError, match="Expected `pixel_values` for a method that acts be"):
        compress(tiny.model, encoded, "pixelprune", 0.4)
    with pytest.raises(UnsupportedError, match="that can be run on fewer patches"):
        compress(build("fused_llava").model, build("fused_llava").inputs([1]), "pixelprune", 0.4)


def test_options_with_a_site_make_an_equal_method():
    method = get_method("pixel-variance", site="patches", cover=2)
    assert method.options() == {"cover": 2, "site": "patches"}
    assert get_method("pixel-variance", **method.options()) == method


def test_attention_without_a_mask_is_refused_where_one_is_needed(monkeypatch):
    tiny = build("llava")
    monkeypatch.setattr(tiny.model.base_model.vision_tower.config, "_attn_implementation_internal",
                        "flex_attention")  # fmt: skip
    with pytest.raises(UnsupportedError, match="Expected attention that takes a mask of numbers"):
        fewer.fewer(tiny.model, tiny.inputs([1, 2]))


def test_gradient_checkpointing_is_refused():
    tiny = build("qwen2_vl")
    layer = encoder_layers(tiny.model)[0]
    layer.train()
    layer.gradient_checkpointing = True
    try:
        with pytest.raises(UnsupportedError, match="Expected no gradient checkpointing"):
            fewer.fewer(tiny.model, tiny.inputs([1]))
    finally:
        layer.gradient_checkpointing = False
        layer.eval()
