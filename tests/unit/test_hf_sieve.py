"""The sieve as a caller meets it: what it touches, restores, refuses and reports."""

import copy
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from families.checks import NEW, answer
from families.methods import Blind, ByNorm, Poisoned
from families.tiny import IMAGE, REQUIRED, build
from tokensieve.errors import (
    BudgetError,
    ConfigError,
    NonFiniteError,
    PromptError,
    UnknownNameError,
    UnsupportedError,
)
from tokensieve.hf.sieve import compress, encode, sieve

required = pytest.mark.parametrize("name", REQUIRED)


def state(model):
    """What a sieve may touch of a model instance."""
    hooks = (len(model._forward_pre_hooks), len(model._forward_hooks))
    projector = getattr(model.base_model, "multi_modal_projector", model)
    own = {k: v for k, v in model.__dict__.items() if callable(v) and not isinstance(v, type)}
    deltas = getattr(model.base_model, "rope_deltas", None)
    return hooks, len(projector._forward_pre_hooks), own, deltas


@required
def test_everything_is_put_back(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    tiny.model.generate(**inputs, max_new_tokens=1)
    before = state(tiny.model)
    with sieve(tiny.model, ByNorm(), 0.4):
        assert "generate" in tiny.model.__dict__
        tiny.model.generate(**inputs, max_new_tokens=2)
        tiny.model(**inputs)
    assert state(tiny.model) == before
    with pytest.raises(RuntimeError, match="poisoned"), sieve(tiny.model, Poisoned(), 0.4):
        tiny.model.generate(**inputs, max_new_tokens=2)
    assert state(tiny.model) == before
    with pytest.raises(ZeroDivisionError), sieve(tiny.model, ByNorm(), 0.4):
        _ = 1 / 0
    assert state(tiny.model) == before


def test_a_callers_own_patch_survives():
    model = build("llava").model
    patched = partial(model.generate, do_sample=False)
    model.generate = patched
    try:
        with sieve(model, ByNorm(), 0.4) as report:
            model.generate(**build("llava").inputs([1]), max_new_tokens=1)
        assert model.generate is patched
        assert report.kept_tokens == 6
    finally:
        del model.generate


def test_a_failed_call_leaves_the_sieve_usable():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    with sieve(tiny.model, ByNorm(), 0.4) as report:
        with pytest.raises(ValueError, match="not_an_option"):
            tiny.model.generate(**inputs, not_an_option=3)
        tiny.model.generate(**inputs, max_new_tokens=1)
        tiny.model(**inputs)
    assert [call.kept_tokens for call in report.calls] == [6, 6]


@required
def test_inputs_are_not_touched(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    before = copy.deepcopy(inputs)
    compress(tiny.model, inputs, ByNorm(), 0.4)
    with sieve(tiny.model, ByNorm(), 0.4):
        tiny.model.generate(**inputs, max_new_tokens=2)
    assert inputs.keys() == before.keys()
    for key, value in inputs.items():
        assert torch.equal(value, before[key])


def test_compress_patches_nothing():
    tiny = build("qwen2_5_vl")
    tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    before = state(tiny.model)
    compress(tiny.model, tiny.inputs([1, 2]), ByNorm(), 0.4)
    assert state(tiny.model) == before


@required
def test_repeated_use_is_the_same(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    plain = answer(tiny.model, inputs)
    with sieve(tiny.model, ByNorm(), 0.4) as report:
        first, second = answer(tiny.model, inputs), answer(tiny.model, inputs)
    with sieve(tiny.model, ByNorm(), 0.4):
        third = answer(tiny.model, inputs)
    assert_close(second, first, rtol=0, atol=0)
    assert_close(third, first, rtol=0, atol=0)
    assert_close(answer(tiny.model, inputs), plain, rtol=0, atol=0)
    assert len(report.calls) == 2


def test_nested_use_is_refused_and_the_outer_lives_on():
    tiny = build("llava")
    with sieve(tiny.model, ByNorm(), 0.4) as report:
        with pytest.raises(ConfigError, match="one open sieve"), sieve(tiny.model, ByNorm(), 0.2):
            pass
        tiny.model.generate(**tiny.inputs([1]), max_new_tokens=1)
    assert report.kept_tokens == 6
    assert "generate" not in tiny.model.__dict__


@required
def test_the_prompt_comes_back_as_it_was(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    S = inputs["input_ids"].shape[1]
    with sieve(tiny.model, ByNorm(), 0.4):
        tensor = tiny.model.generate(**inputs, max_new_tokens=3)
        rich = tiny.model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        ids = inputs.pop("input_ids")
        positional = tiny.model.generate(ids, **inputs, max_new_tokens=3)
    assert torch.equal(tensor[:, :S], ids)
    assert tensor.shape[1] == S + 3
    assert torch.equal(rich.sequences, tensor)
    assert torch.equal(positional, tensor)


def test_lengths_mean_the_whole_prompt():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    S = inputs["input_ids"].shape[1]
    config = GenerationConfig(max_length=S + 4, min_length=S + 2, pad_token_id=0)
    with sieve(tiny.model, ByNorm(), 0.4):
        assert tiny.model.generate(**inputs, max_length=S + 3).shape[1] == S + 3
        assert tiny.model.generate(**inputs, generation_config=config).shape[1] == S + 4
    assert (config.max_length, config.max_new_tokens) == (S + 4, None)


def test_no_image_reaches_the_model(monkeypatch):
    tiny = build("llava")
    inputs = tiny.inputs([1, 2])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    kept = (ids != IMAGE) & mask.bool()
    alone = ids[0][kept[0]][None]
    wanted = answer(tiny.model, {"input_ids": alone, "attention_mask": torch.ones_like(alone)})
    monkeypatch.setattr(tiny.model.base_model, "get_image_features", None)
    monkeypatch.delattr(type(tiny.model.base_model), "get_image_features")
    monkeypatch.setattr(
        tiny.model.base_model, "get_image_features", lambda pixel_values: pytest.fail("encoder ran")
    )
    with sieve(tiny.model, Blind(), 0.4, positions="renumber") as report:
        got = answer(tiny.model, inputs)
    assert_close(got[1][:1], wanted[1], rtol=1e-4, atol=1e-4)
    assert (report.visual_tokens, report.kept_tokens) == (48, 0)
    assert "encode" not in report.ms


def test_no_image_drops_newlines_too():
    tiny = build("llava_next")
    short = compress(tiny.model, tiny.inputs([1, 2]), Blind(), 0.4)
    assert not bool((short.inputs["input_ids"] == IMAGE).any())
    assert "mm_encoder_outputs" not in short.inputs


def test_text_only_prompts_pass_through():
    tiny = build("llava")
    ids = torch.tensor([[1, 2, 3, 4]])
    plain = tiny.model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)
    with sieve(tiny.model, ByNorm(), 0.4) as report:
        same = tiny.model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(same, plain)
    assert report.visual_tokens == 0


def test_report_counts_and_prints():
    tiny = build("llava")
    with sieve(tiny.model, ByNorm(), 0.25) as report:
        tiny.model.generate(**tiny.inputs([1, 2]), max_new_tokens=2)
        tiny.model(**tiny.inputs([1]))
    assert (report.visual_tokens, report.kept_tokens) == (64, 16)
    generated, forward = report.calls
    assert set(generated.ms) == {"encode", "select", "prefill", "decode"}
    assert set(forward.ms) == {"encode", "select", "prefill"}
    assert all(spent >= 0 for spent in report.ms.values())
    crop = generated.prompts[1].images[0].crops[0]
    assert (crop.grid, len(crop.kept), int(crop.valid.sum())) == ((4, 4), 4, 16)
    assert crop.kept.tolist() == sorted(set(crop.kept.tolist()))
    assert str(report).startswith("ByNorm at keep=0.25: 16 of 64 visual tokens (25%) in 2 calls")


@pytest.mark.parametrize(("newlines", "structural"), [("keep", True), ("drop", False)])
def test_newlines_are_kept_or_dropped_as_said(newlines, structural):
    tiny = build("llava_next")
    call = compress(tiny.model, tiny.inputs([1, 2]), ByNorm(), 0.4, newlines=newlines).report.calls[
        0
    ]
    for prompt in call.prompts:
        for image in prompt.images:
            assert (image.structural > 0) is structural
            assert image.kept == image.structural + sum(len(c.kept) for c in image.crops)
            for crop in image.crops:
                assert len(crop.kept) == int(0.4 * int(crop.valid.sum()) + 0.5)
                assert bool(crop.valid[crop.kept].all())


@pytest.mark.parametrize("pool", ["image", "prompt"])
def test_pooled_budgets_go_where_scores_are_high(pool):
    tiny = build("llava_next")
    call = compress(tiny.model, tiny.inputs([1, 2]), ByNorm(), 0.3, pool=pool).report.calls[0]
    for prompt in call.prompts:
        pools = [prompt.images] if pool == "prompt" else [[image] for image in prompt.images]
        for images in pools:
            crops = [crop for image in images for crop in image.crops]
            valid = sum(int(crop.valid.sum()) for crop in crops)
            assert sum(len(crop.kept) for crop in crops) == int(0.3 * valid + 0.5)
    counts = [len(crop.kept) for image in call.prompts[1].images for crop in image.crops]
    assert len(set(counts)) > 1


def test_other_text_under_the_same_pictures():
    tiny = build("llava")
    encoded = encode(tiny.model, tiny.inputs([1, 2]))
    other = tiny.inputs([1, 2], text=(7, 3))
    moved = encoded.with_prompt(
        input_ids=other["input_ids"], attention_mask=other["attention_mask"]
    )
    fresh = compress(tiny.model, other, ByNorm(), 0.4)
    reused = compress(tiny.model, moved, ByNorm(), 0.4)
    assert_close(answer(tiny.model, reused.inputs), answer(tiny.model, fresh.inputs))
    with pytest.raises(PromptError, match="placeholders"):
        encoded.with_prompt(input_ids=torch.tensor([[1, IMAGE]]))


def test_training_through_a_sieve_has_gradients():
    tiny = build("llava")
    inputs = tiny.inputs([1, 2])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with sieve(tiny.model, ByNorm(), 0.4):
        loss = tiny.model(**inputs, labels=labels).loss
    weight = tiny.model.base_model.multi_modal_projector.linear_1.weight
    (gradient,) = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) > 0


def test_half_precision_stays_half():
    tiny = build("llava")
    model = copy.deepcopy(tiny.model).to(torch.bfloat16)
    inputs = tiny.inputs([1])
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    short = compress(model, inputs, ByNorm(), 0.4)
    assert short.inputs["mm_encoder_outputs"]["image"].pooler_output[0].dtype == torch.bfloat16
    assert answer(model, short.inputs)[0].shape == (1, NEW)


def refuses(error, match, model=None, **changes):
    tiny = build("llava")
    inputs = {**tiny.inputs([1]), **changes}
    inputs = {key: value for key, value in inputs.items() if value is not None}
    model = tiny.model if model is None else model
    with pytest.raises(error, match=match):
        compress(model, inputs, ByNorm(), 0.4)
    with pytest.raises(error, match=match), sieve(model, ByNorm(), 0.4):
        model.generate(**inputs, max_new_tokens=1)
    with pytest.raises(error, match=match), sieve(model, ByNorm(), 0.4):
        model(**inputs)  # a plain forward is no way round


def test_picture_without_placeholder():
    ids = torch.tensor([[1, 2, 3]])
    refuses(PromptError, "placeholder in the prompt", input_ids=ids, attention_mask=None)


def test_placeholder_without_picture():
    refuses(PromptError, "Expected a picture", pixel_values=None)


def test_placeholders_cut_off():
    ids = build("llava").inputs([1])["input_ids"][:, 9:]
    refuses(PromptError, "as many image placeholders", input_ids=ids, attention_mask=None)


def test_nan_is_named():
    pixels = build("llava").inputs([1])["pixel_values"]
    refuses(NonFiniteError, "picture 1", pixel_values=pixels * float("nan"))
    broken = build("llava").inputs([1]) | {"pixel_values": pixels * float("nan")}
    with pytest.raises(NonFiniteError, match="'pixels' of picture 1"):
        compress(build("llava").model, broken, "downsample", 0.3)


def test_embeddings_in_place_of_ids():
    embeds = torch.zeros(1, 4, 32)
    refuses(UnsupportedError, "inputs_embeds", input_ids=None, inputs_embeds=embeds)


def test_videos():
    refuses(UnsupportedError, "video", pixel_values_videos=torch.zeros(1, 2, 3, 4, 4))


def test_a_model_without_pictures():
    llm = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=2)
    )  # fmt: skip
    refuses(UnsupportedError, "no visual tokens", model=llm)


def test_a_cache_carried_over_with_pictures():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    cache = tiny.model(**inputs).past_key_values
    with sieve(tiny.model, ByNorm(), 0.4):
        with pytest.raises(PromptError, match="new ones behind them"):  # nothing new
            tiny.model.generate(**inputs, past_key_values=cache, max_new_tokens=1)
        with pytest.raises(UnsupportedError, match="filled cache in a forward"):
            tiny.model(**inputs, past_key_values=cache)
        short = tiny.model(**inputs).past_key_values
        with pytest.raises(UnsupportedError, match="by hand"):
            tiny.model(input_ids=torch.tensor([[3]]), past_key_values=short)
        mine = tiny.model(input_ids=torch.tensor([[3]]), past_key_values=cache).logits
    whole = {name: inputs[name] for name in inputs}
    whole["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[3]])], 1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    assert_close(mine[:, -1], tiny.model(**whole).logits[:, -1], rtol=1e-4, atol=1e-4)


def test_continuous_batching():
    tiny = build("llava")
    with sieve(tiny.model, ByNorm(), 0.4):
        with pytest.raises(UnsupportedError, match="continuous batching"):
            tiny.model.generate_batch([[1, 2]])
        with pytest.raises(UnsupportedError, match="continuous batching"):
            tiny.model.generate(**tiny.inputs([1]), cache_implementation="paged")


def test_renumber_is_refused_where_positions_are_places():
    tiny = build("qwen2_5_vl")
    with pytest.raises(ConfigError, match="M-RoPE"):
        compress(tiny.model, tiny.inputs([1]), ByNorm(), 0.4, positions="renumber")


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (UnknownNameError, {"positions": "kep"}),
        (UnknownNameError, {"pool": "batch"}),
        (UnknownNameError, {"newlines": "no"}),
        (ConfigError, {"seed": 3}),
        (BudgetError, {"keep": 1.7}),
        (BudgetError, {"keep": 0}),
        (BudgetError, {"keep": float("nan")}),
    ],
)
def test_arguments_are_checked_before_any_work(error, arguments):
    tiny = build("llava")
    with pytest.raises(error), sieve(tiny.model, ByNorm(), **arguments):
        pass
    assert "generate" not in tiny.model.__dict__


def test_keys_need_one_per_prompt():
    tiny = build("llava")
    with pytest.raises(ConfigError, match="2 keys"):
        compress(tiny.model, tiny.inputs([1, 2]), ByNorm(), 0.4, keys=[1])


def test_a_wrapped_model_is_to_be_unwrapped():
    refuses(UnsupportedError, "_orig_mod", model=torch.compile(build("llava").model))


def test_shrinking_pictures_has_no_pool():
    model = build("llava_next").model
    with pytest.raises(UnsupportedError, match=r"Expected pool='crop' for 'downsample'.*'image'"):
        sieve(model, "downsample", 0.5, pool="image").__enter__()
