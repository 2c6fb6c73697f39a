"""A chat that goes on with its cache is answered as the whole conversation is."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import transformers
from packaging.version import Version
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from families.checks import CLOSE
from families.methods import ByFeatureNorm, ByNorm, Ragged
from families.registry import ready
from families.tiny import BEGIN, END, IMAGE, NAMES, REQUIRED, VIDEO, build
from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.sieve import compress, sieve

NEW = 4
# Gemma 3 reads new pictures wrong behind a cache, before that release
OLD = Version(transformers.__version__) < Version("5.23")
CAUSAL = tuple(n for n in NAMES if n != "paligemma" and not (OLD and n == "gemma3"))
every_family = pytest.mark.parametrize("name", CAUSAL)


def ids_of(*parts):
    return torch.tensor([[token for part in parts for token in part]])


def picture(rows):
    return [BEGIN, *[IMAGE] * rows, END]


def prompt(tiny, ids, pictures=0, only_last=False):
    """What the processor would give for these ids and the first so many pictures, or the last."""
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if pictures:
        out |= last_of(tiny.pixels([pictures])) if only_last else tiny.pixels([pictures])
    if "qwen" in tiny.name:
        out["mm_token_type_ids"] = (ids == IMAGE).int()
    if tiny.name == "gemma3":
        out["token_type_ids"] = (ids == IMAGE).long()
    if tiny.name == "paligemma":
        out["token_type_ids"] = torch.zeros_like(ids)
    return out


def last_of(pixels):
    if "image_grid_thw" in pixels:
        grids = pixels["image_grid_thw"]
        count = int(grids[-1].prod())
        return {"pixel_values": pixels["pixel_values"][-count:], "image_grid_thw": grids[-1:]}
    one = {name: value[-1:] for name, value in pixels.items()}
    if len(pixels["pixel_values"]) == 1:  # one row of tiles a prompt
        one["pixel_values"] = pixels["pixel_values"][:, -1:]
    return one


def told(model, inputs, **options):
    out = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True, suppress_tokens=[IMAGE, VIDEO, BEGIN, END], **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits, 1), out.past_key_values


def check_chat(tiny, method, *, positions="keep", only_new=False, only_new_ids=False, keep=0.4):
    """Three turns: a picture, words, another picture and words."""
    model, rows = tiny.model, tiny.rows([2])
    with sieve(model, method, keep, positions=positions) as report:
        ids = ids_of([1, 2], picture(rows[0]), [7, 8, 9])
        sequences, logits, cache = told(model, prompt(tiny, ids, 1))
        for turn, (said, pictures) in enumerate(
            (([11, 12, 13], 1), ([*picture(rows[1]), 21, 22], 2))
        ):
            whole = torch.cat([sequences, ids_of(said)], 1)
            wanted = told(model, prompt(tiny, whole, pictures))
            inputs = prompt(tiny, whole, pictures if turn or not only_new else 0,
                            only_last=only_new)  # fmt: skip
            if only_new_ids:
                new = len(said) + 1  # the last token told is not in the cache
                inputs["input_ids"] = whole[:, -new:]
                for name in ("mm_token_type_ids", "token_type_ids"):
                    if name in inputs:
                        inputs[name] = inputs[name][:, -new:]
            got, logits, cache = told(model, inputs, past_key_values=cache)
            assert_close(logits, wanted[1], **CLOSE)
            assert torch.equal(got[:, -NEW:], wanted[0][:, -NEW:])
            assert torch.equal(got[:, :-NEW], inputs["input_ids"])  # the prompt as given
            sequences = wanted[0]
    assert cache.get_seq_length() < sequences.shape[1] - 1  # it held less all along
    return report


@every_family
def test_a_chat_goes_on_as_if_given_whole(name):
    check_chat(build(name), ByNorm())


@every_family
def test_with_only_the_new_picture(name):
    check_chat(build(name), ByNorm(), only_new=True)


@pytest.mark.parametrize("name", REQUIRED)
def test_with_only_the_new_tokens(name):
    check_chat(build(name), ByNorm(), only_new=True, only_new_ids=True)


@pytest.mark.parametrize("name", [n for n in CAUSAL if "qwen" not in n])
def test_positions_renumbered(name):
    check_chat(build(name), ByNorm(), positions="renumber")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize("method", ["random", "selector", "divprune", "fastervlm", "downsample"])
@pytest.mark.one_of_each
def test_methods(name, method, only_new):
    tiny = build(name)
    check_chat(tiny, ready(method, tiny.model), only_new=only_new)


def test_a_method_inside_the_encoder():
    tiny = build("llava")
    check_chat(tiny, ready("tome", tiny.model))


def test_the_check_bites(monkeypatch):
    """Positions counted from what the cache holds, as a plain model would."""
    from tokensieve.hf.calls import turn

    def wrong(model, inputs, mask):
        return torch.arange(mask.shape[1])[None] // 2

    monkeypatch.setattr(turn, "original_positions", wrong)
    with pytest.raises(AssertionError):
        check_chat(build("llava"), ByNorm())


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_several_prompts_of_different_lengths(name):
    """Prompts padded on the left, of which different numbers of tokens stay."""
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    with sieve(tiny.model, Ragged(), 0.4):
        sequences, _, cache = told(tiny.model, inputs)
        whole = torch.cat([sequences, torch.tensor([[11, 12], [13, 14]])], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, NEW + 2).long()], 1)
        again = {**inputs, "input_ids": whole, "attention_mask": mask}
        if "mm_token_type_ids" in again:
            again["mm_token_type_ids"] = (whole == IMAGE).int()
        wanted = told(tiny.model, again)
        got = told(tiny.model, again, past_key_values=cache)
    assert_close(got[1], wanted[1], **CLOSE)
    assert torch.equal(got[0], wanted[0])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_first_turn_may_be_plain_or_without_a_picture(name):
    tiny = build(name)
    model, rows = tiny.model, tiny.rows([2])
    for first, pictures, plain in (
        (ids_of([1, 2, 3]), 0, False),
        (ids_of([1, 2, 3]), 0, True),
        (ids_of([1], picture(rows[0]), [3]), 1, True),
    ):
        if plain:
            sequences, _, cache = told(model, prompt(tiny, first, pictures))
        with sieve(model, ByNorm(), 0.4):
            if not plain:
                sequences, _, cache = told(model, prompt(tiny, first, pictures))
            assert type(cache) is DynamicCache
            said = [5, 6] if pictures else [*picture(rows[0]), 5]
            whole = torch.cat([sequences, ids_of(said)], 1)
            got = told(model, prompt(tiny, whole, 1), past_key_values=cache)
            if plain and pictures:  # the picture was read whole
                continue
            wanted = told(model, prompt(tiny, whole, 1))
        assert_close(got[1], wanted[1], **CLOSE)


def test_a_cache_of_the_callers_own_and_a_static_one():
    tiny = build("llava")
    model, rows = tiny.model, tiny.rows([2])
    for cache in (DynamicCache(), StaticCache(model.config.get_text_config(), max_cache_len=128)):
        with sieve(model, ByNorm(), 0.4):
            first = prompt(tiny, ids_of([1], picture(rows[0]), [7, 8]), 1)
            sequences, *_ = told(model, first, past_key_values=cache)
            whole = torch.cat([sequences, ids_of([*picture(rows[1]), 9])], 1)
            wanted = told(model, prompt(tiny, whole, 2))
            got = told(model, prompt(tiny, whole, 2), past_key_values=cache)
        assert_close(got[1], wanted[1], **CLOSE)


def filled(tiny, method=None, keep=0.4, **options):
    """A cache and the conversation so far."""
    inputs = prompt(tiny, ids_of([1], picture(tiny.rows([1])[0]), [7, 8]), 1)
    with sieve(tiny.model, method or ByNorm(), keep, **options):
        sequences, _, cache = told(tiny.model, inputs)
    return cache, sequences


LEFT = "Expected a cache that holds the whole prompt. Got one filled under a sieve or"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", [ByNorm(), "fastv"])
@pytest.mark.one_of_each
def test_a_cache_that_left_its_sieve_is_refused_by_the_plain_model(name, method):
    tiny = build(name)
    cache, sequences = filled(tiny, method, **({"layer": 2} if method == "fastv" else {}))
    for one in (cache, copy.deepcopy(cache)):
        whole = torch.cat([sequences, ids_of([11, 12])], 1)
        with pytest.raises(UnsupportedError, match=LEFT):
            told(tiny.model, prompt(tiny, whole), past_key_values=one)
        with pytest.raises(UnsupportedError, match=LEFT), torch.no_grad():
            tiny.model(input_ids=torch.tensor([[3]]), past_key_values=one)
    assert isinstance(cache, DynamicCache)


def test_a_cache_that_held_all_goes_anywhere():
    tiny = build("llava")
    cache, sequences = filled(tiny, keep=1.0)
    whole = prompt(tiny, torch.cat([sequences, ids_of([11, 12])], 1))
    wanted = told(tiny.model, {**whole, **tiny.pixels([1])})
    assert_close(told(tiny.model, whole, past_key_values=cache)[1], wanted[1], **CLOSE)


def test_another_sieve_goes_on_and_another_model_does_not():
    tiny = build("llava")
    cache, sequences = filled(tiny)
    whole = torch.cat([sequences, ids_of([11, 12])], 1)
    with sieve(tiny.model, ByFeatureNorm(), 0.2):
        got = told(tiny.model, prompt(tiny, whole), past_key_values=copy.deepcopy(cache))
    with sieve(tiny.model, ByNorm(), 0.4):
        wanted = told(tiny.model, prompt(tiny, whole, 1))
    assert_close(got[1], wanted[1], **CLOSE)  # the picture stays as it was read
    other = copy.deepcopy(tiny.model)
    with sieve(other, ByNorm(), 0.4), pytest.raises(UnsupportedError, match="another model"):
        told(other, prompt(tiny, whole), past_key_values=cache)


def test_a_failed_turn_leaves_the_cache_as_it_was():
    tiny = build("llava")
    cache, sequences = filled(tiny)
    whole = torch.cat([sequences, ids_of([11, 12])], 1)

    def fails(input_ids, scores):
        raise RuntimeError("no")

    with sieve(tiny.model, ByNorm(), 0.4):
        wanted = told(tiny.model, prompt(tiny, whole, 1))
        with pytest.raises(PromptError, match="other tokens from position 0"):
            told(tiny.model, prompt(tiny, whole + 1), past_key_values=cache)
        with pytest.raises(UnsupportedError, match=LEFT):
            cache.update(None, None, 0)
        got = told(tiny.model, prompt(tiny, whole), past_key_values=cache)
        assert_close(got[1], wanted[1], **CLOSE)
        longer = prompt(tiny, torch.cat([got[0], ids_of([14])], 1))
        with pytest.raises(RuntimeError, match="no"):
            told(tiny.model, longer, past_key_values=cache, logits_processor=[fails])
    with pytest.raises(UnsupportedError, match=LEFT):
        cache.update(None, None, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: {**p, "input_ids": p["input_ids"][:, :5], "attention_mask": None},
         PromptError, "new ones behind them"),
        (lambda p: {**p, "attention_mask": p["attention_mask"][:, :-3]}, PromptError,
         "Expected a mask of the"),
        (lambda p: {**p, "input_ids": torch.cat([p["input_ids"], ids_of(picture(3))], 1),
                    "attention_mask": None}, PromptError, "Expected the pictures of the whole"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(change, error, message):
    tiny = build("llava")
    cache, sequences = filled(tiny)
    inputs = change(prompt(tiny, torch.cat([sequences, ids_of([11, 12])], 1), 1))
    with sieve(tiny.model, ByNorm(), 0.4), pytest.raises(error, match=message):
        told(tiny.model, inputs, past_key_values=cache)


def test_inside_the_llm_and_over_a_prompt_it_is_refused():
    tiny = build("llava")
    cache, sequences = filled(tiny)
    rows = tiny.rows([2])
    whole = torch.cat([sequences, ids_of([*picture(rows[1]), 5])], 1)
    call = partial(told, tiny.model, prompt(tiny, whole, 2))
    inside, _ = filled(tiny, "fastv", layer=2)
    for one, message, method, options in (
        (cache, "dropped inside the LLM", "fastv", {"layer": 2}),
        (inside, "dropped inside the LLM", ByNorm(), {}),
        (cache, "a budget for all pictures of a prompt", ByNorm(), {"pool": "prompt"}),
        (cache, "Expected positions='keep', as this", ByNorm(), {"positions": "renumber"}),
    ):
        refused = pytest.raises(UnsupportedError, match=message)
        with sieve(tiny.model, method, 0.4, **options), refused:
            call(past_key_values=one)


def test_a_family_that_reads_both_ways_is_refused():
    with pytest.raises(UnsupportedError, match="reads its prompt in both directions"):
        check_chat(build("paligemma"), ByNorm())


@pytest.mark.skipif(not OLD, reason="right since Transformers 5.23")
def test_pictures_that_transformers_masks_wrong_are_refused():
    with pytest.raises(UnsupportedError, match=r"behind which Transformers .* reads them wrong"):
        check_chat(build("gemma3"), ByNorm())


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "idefics3"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"own": True}])
@pytest.mark.one_of_each
def test_a_cache_made_from_compress(name, options):
    """The plain model answers, and takes no next turn on it; under a sieve the chat goes on."""
    tiny, options = build(name), dict(options)
    model, rows = tiny.model, tiny.rows([2])
    first = prompt(tiny, ids_of([1], picture(rows[0]), [7, 8]), 1)
    short = compress(model, first, ByNorm(), 0.4)
    own = {"past_key_values": DynamicCache()} if options.pop("own", False) else {}
    told_short, _, cache = told(model, short.inputs, **options, **own)
    answer = told_short[:1, short.prompt_length :]
    whole = torch.cat([first["input_ids"], answer, ids_of([11, 12])], 1)
    for turn in (
        prompt(tiny, whole, 1),
        prompt(tiny, torch.cat([told_short[:1], ids_of([11, 12])], 1)),
    ):
        turn.pop("pixel_values", None)
        with pytest.raises(UnsupportedError, match=LEFT):
            told(model, turn, past_key_values=cache)
    if options:
        return
    with sieve(model, ByNorm(), 0.4):
        wanted = told(model, prompt(tiny, whole, 1))
        with pytest.raises(UnsupportedError, match=r"crop\(-3\)"):  # nobody saw the answer
            told(model, prompt(tiny, whole), past_key_values=cache)
        cache.crop(-3)
        got = told(model, prompt(tiny, whole), past_key_values=cache)
    assert_close(got[1], wanted[1], **CLOSE)
