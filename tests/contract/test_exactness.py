"""A shortened prompt is answered exactly as theory says, for every family."""

import pytest
import torch
import transformers
from packaging.version import Version
from torch.testing import assert_close
from transformers import StaticCache

from families import checks
from families.checks import CLOSE, NEW, answer, in_sieve, ragged, shorten
from families.methods import ByNorm, Ragged
from families.said import require_same, require_tokens
from families.tiny import NAMES, PAD, REQUIRED, build
from tokensieve.hf.sieve import compress, encode, sieve

MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# 5.18 mixes up a prompt's pictures under beams without any sieve: no reference for more than one
BEAMS_TAKE_SEVERAL_PICTURES = Version(transformers.__version__) >= Version("5.23")
every_family = pytest.mark.parametrize("name", NAMES)
# each stands for a way of handing over rows: tensor, deepstack, one item a prompt, bidirectional
VARIED = (*REQUIRED, "internvl", "qwen3_vl", "idefics3", "gemma3")
varied = pytest.mark.parametrize("name", [n for n in NAMES if n in VARIED])
required = pytest.mark.parametrize("name", REQUIRED)


@every_family
def test_keep_all_is_the_model_itself(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    tokens, logits = answer(tiny.model, inputs)
    with sieve(tiny.model, ByNorm(), 1.0) as report:
        same_tokens, same = answer(tiny.model, inputs)
        forward = tiny.model(**inputs).logits
    claim = f"keep=1 is not the identity on {name}"
    require_same(same, logits, claim)
    require_same(forward, tiny.model(**inputs).logits, claim)
    require_tokens(same_tokens, tokens, claim)
    assert report.kept_tokens == report.visual_tokens > 0


@every_family
def test_dropped_tokens_are_as_if_blocked(name):
    checks.check_blocked(build(name), shorten)
    checks.check_blocked(build(name), ragged)


@required
def test_prompts_with_and_without_pictures_share_a_batch(name):
    checks.check_blocked(build(name), shorten, pictures=(2, 0, 1))


@required
def test_dropped_tokens_are_as_if_blocked_under_eager_attention(name):
    checks.check_blocked(build(name, "eager"), shorten)


@every_family
def test_a_padded_prompt_is_answered_as_alone(name):
    checks.check_alone(build(name), ragged)


@every_family
def test_the_cache_holds_the_short_prompt(name):
    checks.check_cache(build(name), shorten)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*MROPE, "gemma3", "paligemma")])
def test_renumbered_is_as_if_built_by_hand(name):
    checks.check_embeds(build(name), lambda m, i: shorten(m, i, positions="renumber"))


@varied
def test_sieve_and_compress_agree(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    tokens, logits, report = in_sieve(tiny.model, inputs)
    short = compress(tiny.model, inputs, ByNorm(), 0.4)
    same_tokens, same = answer(tiny.model, short.inputs)
    assert_close(same, logits, rtol=0, atol=0)
    assert torch.equal(same_tokens, tokens)
    assert (short.report.kept_tokens, short.report.visual_tokens) == (
        report.kept_tokens,
        report.visual_tokens,
    )


@every_family
def test_beams(name):
    tiny = build(name)
    options = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    inputs = tiny.inputs([1, 2] if BEAMS_TAKE_SEVERAL_PICTURES else [1, 1])
    with sieve(tiny.model, Ragged(), 0.6):
        tokens = tiny.model.generate(**inputs, **options)
    blocked = checks.blocked(tiny.model, inputs, ragged(tiny.model, inputs))
    wanted = tiny.model.generate(**blocked, **options)
    assert torch.equal(tokens, wanted)


@required
def test_compressed_inputs_serve_twice_even_with_beams(name):
    tiny = build(name)
    short = compress(tiny.model, tiny.inputs([1, 2]), ByNorm(), 0.4)
    first = tiny.model.generate(**short.inputs, max_new_tokens=NEW, num_beams=3, do_sample=False)
    again = tiny.model.generate(**short.inputs, max_new_tokens=NEW, num_beams=3, do_sample=False)
    assert torch.equal(first, again)


@varied
def test_without_cache(name):
    tiny = build(name)
    for inputs in (tiny.inputs([1, 2]), tiny.inputs([1])):
        tokens, logits, _ = in_sieve(tiny.model, inputs)
        same_tokens, same, _ = in_sieve(tiny.model, inputs, use_cache=False)
        assert_close(same, logits, **CLOSE)
        assert torch.equal(same_tokens, tokens)


@varied
def test_static_cache(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    tokens, logits, _ = in_sieve(tiny.model, inputs)
    same_tokens, same, _ = in_sieve(tiny.model, inputs, cache_implementation="static")
    assert_close(same, logits, **CLOSE)
    assert torch.equal(same_tokens, tokens)


@required
def test_a_cache_of_the_callers_own(name):
    tiny = build(name)
    inputs = tiny.inputs([1])
    cache = StaticCache(config=tiny.model.config.get_text_config(), max_cache_len=200)
    tokens, logits, _ = in_sieve(tiny.model, inputs)
    same_tokens, same, _ = in_sieve(tiny.model, inputs, past_key_values=cache)
    assert_close(same, logits, **CLOSE)
    assert torch.equal(same_tokens, tokens)


@varied
def test_without_mask(name):
    tiny = build(name)
    inputs = tiny.inputs([1])
    tokens, logits, _ = in_sieve(tiny.model, inputs)
    del inputs["attention_mask"]
    same_tokens, same, _ = in_sieve(tiny.model, inputs)
    assert_close(same, logits, rtol=0, atol=0)
    assert torch.equal(same_tokens, tokens)


@required
def test_without_mask_padding_is_told_by_its_token(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    _, logits, _ = in_sieve(tiny.model, inputs)
    assert bool((inputs.pop("attention_mask") == 0).any())
    _, same, _ = in_sieve(tiny.model, inputs, pad_token_id=PAD)
    assert_close(same, logits, rtol=0, atol=0)


@required
def test_prompt_lookup(name):
    tiny = build(name)
    inputs = tiny.inputs([1])
    tokens, _, _ = in_sieve(tiny.model, inputs)
    same, _, _ = in_sieve(tiny.model, inputs, prompt_lookup_num_tokens=2)
    assert torch.equal(same, tokens)


@varied
def test_forward_and_loss_are_as_if_blocked(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    place = ids == tiny.model.config.image_token_id
    labels = ids.masked_fill(place | (mask == 0), -100)
    extra = {"labels": labels} if name != "gemma3" else {}
    with sieve(tiny.model, ByNorm(), 0.4), torch.no_grad():
        short = tiny.model(**inputs).logits
        out = tiny.model(**inputs, **extra)
    blocked = checks.blocked(tiny.model, inputs, shorten(tiny.model, inputs))
    kept = blocked["attention_mask"].bool()
    with torch.no_grad():
        wanted = tiny.model(**blocked).logits
    for b in range(2):
        assert_close(short[b][-int(kept[b].sum()) :], wanted[b][kept[b]], **CLOSE)
    if extra:
        assert_close(out.logits[kept], wanted[kept], **CLOSE)  # beside the labels
        short_labels = compress(tiny.model, {**inputs, **extra}, ByNorm(), 0.4).inputs["labels"]
        loss = torch.nn.functional.cross_entropy(
            short[:, :-1].flatten(0, 1), short_labels[:, 1:].flatten(), ignore_index=-100
        )
        assert_close(out.loss, loss, **CLOSE)


@required
def test_padding_on_the_right_stays_on_the_right(name):
    tiny = build(name)
    left = tiny.inputs([1, 2])
    right = dict(left)
    shift = int((left["attention_mask"][0] == 0).sum())
    for key, value in left.items():
        if value.shape == left["input_ids"].shape:
            right[key] = torch.stack([value[0].roll(-shift), value[1]])
    with sieve(tiny.model, ByNorm(), 0.4), torch.no_grad():
        one, other = tiny.model(**left).logits, tiny.model(**right).logits
    short = shorten(tiny.model, right)
    real = short["attention_mask"][0].bool()
    assert bool(real[0])
    assert not bool(real[-1])
    assert_close(other[0][real], one[0][-int(real.sum()) :], **CLOSE)


@required
def test_encoded_once_serves_many(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    encoded = encode(tiny.model, inputs)
    for keep in (0.2, 0.6):
        cached = compress(tiny.model, encoded, ByNorm(), keep)
        fresh = compress(tiny.model, inputs, ByNorm(), keep)
        assert_close(
            answer(tiny.model, cached.inputs), answer(tiny.model, fresh.inputs), rtol=0, atol=0
        )


@required
def test_precomputed_encoder_outputs(name):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    fresh = compress(tiny.model, inputs, ByNorm(), 0.4)
    given = {k: v for k, v in inputs.items() if k != "pixel_values"}
    given["mm_encoder_outputs"] = {"image": encode(tiny.model, inputs).output}
    ready = compress(tiny.model, given, ByNorm(), 0.4)
    assert_close(answer(tiny.model, ready.inputs), answer(tiny.model, fresh.inputs))
