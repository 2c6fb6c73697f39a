"""Caches that were handled between two turns: followed, or refused in words."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from contract.test_turns import CLOSE, filled, ids_of, picture, prompt, told
from families.methods import ByNorm, Ragged
from families.tiny import IMAGE, REQUIRED, build
from tokensieve.errors import PromptError, UnsupportedError
from tokensieve.hf.sieve import sieve

SAID = [11, 12, 13]
HIDDEN = [IMAGE, 151, 152, 153]


class Interrupts:
    """A logits processor, or a hook, that is interrupted after so many calls."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, *args, **kwargs):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return args[1] if isinstance(args[0], torch.Tensor) else None


def check_turn(tiny, cache, whole, pictures=1):
    """The turn in `whole` as if no cache were there."""
    wanted = told(tiny.model, prompt(tiny, whole, pictures))
    got = told(tiny.model, prompt(tiny, whole, pictures), past_key_values=cache)
    assert_close(got[1], wanted[1], **CLOSE)
    assert torch.equal(got[0], wanted[0])


def refused(tiny, cache, whole, message, **options):
    with pytest.raises(UnsupportedError, match=message):
        told(tiny.model, prompt(tiny, whole, 1), past_key_values=cache, **options)


def test_an_interrupted_answer_is_not_taken_for_another():
    tiny = build("llava")
    cache, sequences = filled(tiny)
    whole, fresh = torch.cat([sequences, ids_of(SAID)], 1), DynamicCache()
    first = sequences[:, :-4]
    with sieve(tiny.model, ByNorm(), 0.4):
        for one, said in ((cache, whole), (fresh, first)):
            with pytest.raises(KeyboardInterrupt):
                told(tiny.model, prompt(tiny, said, 1), past_key_values=one,
                     logits_processor=[Interrupts(3)])  # fmt: skip
            longer = torch.cat([said, ids_of([90, 91, 92, 93, 94])], 1)
            refused(tiny, one, longer, r"last 3 are not.*crop\(-3\)")
            one.crop(-3)
            check_turn(tiny, one, longer)


@pytest.mark.parametrize("own", [False, True])
def test_a_forward_that_was_interrupted_between_layers(own):
    """Some layers hold the turn, others do not."""
    tiny = build("llava")
    cache, sequences = (
        (DynamicCache(), ids_of([1, *picture(tiny.rows([1])[0]), 7])) if own else filled(tiny)
    )
    whole = sequences if own else torch.cat([sequences, ids_of(SAID)], 1)
    layer = tiny.model.model.language_model.layers[1]
    with sieve(tiny.model, ByNorm(), 0.4):
        handle = layer.register_forward_pre_hook(Interrupts(0))
        with pytest.raises(KeyboardInterrupt):
            told(tiny.model, prompt(tiny, whole, 1), past_key_values=cache)
        handle.remove()
        longer = torch.cat([whole, ids_of([3, 4, 5, 6, 7, 8])], 1)
        refused(tiny, cache, longer, "in every layer. Got .* interrupted")


def test_a_cropped_cache():
    tiny = build("llava")
    cache, sequences = filled(tiny)
    kept = sequences[:, :-3]
    with sieve(tiny.model, ByNorm(), 0.4):
        cache.crop(-2)
        check_turn(tiny, copy.deepcopy(cache), torch.cat([kept, ids_of([99, 98])], 1))
        cache.crop(-4)
        refused(tiny, cache, torch.cat([kept, ids_of([99, 98])], 1), "it was cropped")


def test_a_cache_that_held_all_is_cropped_as_ever():
    tiny = build("llava")
    first = ids_of([1, 2, 3, 4, 5, 6])
    with sieve(tiny.model, ByNorm(), 0.4):
        sequences, _, cache = told(tiny.model, prompt(tiny, first))
        cache.crop(-6)
        check_turn(tiny, cache, torch.cat([sequences[:, :3], ids_of(SAID)], 1), pictures=0)


def test_tokens_read_by_hand_are_known():
    tiny = build("llava")
    cache, sequences = filled(tiny)
    with sieve(tiny.model, ByNorm(), 0.4), torch.no_grad():
        cache.crop(-2)
        sequences = torch.cat([sequences[:, :-3], ids_of([77, 78])], 1)
        S, held = sequences.shape[1], cache.get_seq_length()
        tiny.model(
            input_ids=sequences[:, -2:], past_key_values=cache,
            position_ids=torch.tensor([[S - 2, S - 1]]), attention_mask=torch.ones(1, held + 2),
        )  # fmt: skip
        other = torch.cat([sequences[:, :-1], ids_of(SAID)], 1)
        with pytest.raises(PromptError, match=f"other tokens from position {S - 1} on"):
            told(tiny.model, prompt(tiny, other), past_key_values=copy.deepcopy(cache))
        check_turn(tiny, cache, torch.cat([sequences, ids_of(SAID)], 1))


@pytest.mark.parametrize("name", REQUIRED)
def test_several_answers_to_one_prompt(name):
    """Each goes on by itself, pictures of several axes too."""
    tiny = build(name)
    first = ids_of([1], picture(tiny.rows([1])[0]), [7, 8])
    with sieve(tiny.model, ByNorm(), 0.4):
        torch.manual_seed(0)
        out = tiny.model.generate(
            **prompt(tiny, first, 1), max_new_tokens=4, do_sample=True, num_return_sequences=2,
            suppress_tokens=HIDDEN, return_dict_in_generate=True,
        )  # fmt: skip
        whole = torch.cat([out.sequences, ids_of(SAID).expand(2, -1)], 1)
        twice = {k: torch.cat([v, v]) for k, v in tiny.pixels([1]).items()}
        wanted = told(tiny.model, {**prompt(tiny, whole), **twice})
        got = told(tiny.model, prompt(tiny, whole), past_key_values=out.past_key_values)
    assert_close(got[1], wanted[1], **CLOSE)


def test_beams_leave_answers_that_are_not_known():
    tiny = build("llava")
    cache, first = DynamicCache(), ids_of([1], picture(tiny.rows([1])[0]), [7, 8])
    with sieve(tiny.model, ByNorm(), 0.4):
        sequences, *_ = told(tiny.model, prompt(tiny, first, 1), past_key_values=cache,
                             num_beams=2, num_return_sequences=2)  # fmt: skip
        whole = prompt(tiny, torch.cat([sequences, ids_of(SAID).expand(2, -1)], 1))
        with pytest.raises(UnsupportedError, match="chosen from beams"):
            told(tiny.model, whole, past_key_values=cache)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.batch_select_indices(torch.tensor([1, 0])),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        lambda cache: cache.batch_repeat_interleave(2),
    ],
)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.one_of_each
def test_rows_of_a_cache_are_followed(name, change):
    tiny = build(name)
    inputs = tiny.inputs([1, 2])
    with sieve(tiny.model, Ragged(), 0.4):
        sequences, _, cache = told(tiny.model, inputs)
        rows = DynamicCache()
        rows.update(torch.arange(2.0)[:, None, None, None], torch.zeros(2, 1, 1, 1), 0)
        change(rows)
        order = rows.layers[0].keys.flatten().long()
        change(cache)
        more = torch.ones(2, sequences.shape[1] - inputs["input_ids"].shape[1] + 3).long()
        mask = torch.cat([inputs["attention_mask"], more], 1)[order]
        ids = torch.cat([sequences[order], ids_of(SAID).expand(len(order), -1)], 1)
        whole = {**prompt(tiny, ids), "attention_mask": mask}
        got = told(tiny.model, whole, past_key_values=cache)
        wanted = told(tiny.model, {**whole, **pixels_of(tiny, order)})
    assert_close(got[1], wanted[1], **CLOSE)


def pixels_of(tiny, order):
    """What the processor gives for the prompts of `tiny.inputs([1, 2])` in another order."""
    pixels, of_prompt = tiny.pixels([1, 2]), {0: [0], 1: [1, 2]}
    pictures = [i for row in order.tolist() for i in of_prompt[row]]
    if (grids := pixels.get("image_grid_thw")) is None:
        return {name: value[pictures] for name, value in pixels.items()}
    parts = torch.split(pixels["pixel_values"], grids.prod(-1).tolist())
    return {"pixel_values": torch.cat([parts[i] for i in pictures]),
            "image_grid_thw": grids[pictures]}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "Got use_cache=False"),
        ({"prompt_lookup_num_tokens": 2}, "Got prompt_lookup_num_tokens"),
        ({"num_beams": 2}, "Got 2 rows each"),
    ],
)
def test_what_transformers_gets_wrong_behind_a_cache(options, message):
    tiny = build("llava")
    cache, sequences = filled(tiny)
    with sieve(tiny.model, ByNorm(), 0.4):
        refused(tiny, cache, torch.cat([sequences, ids_of(SAID)], 1), message, **options)


def test_positions_of_new_tokens_alone():
    tiny = build("llava")
    cache, sequences = filled(tiny)
    whole = prompt(tiny, torch.cat([sequences, ids_of(SAID)], 1))
    inputs = {**whole, "input_ids": whole["input_ids"][:, -4:], "position_ids": ids_of(SAID)}
    match = pytest.raises(PromptError, match="`position_ids` of the whole conversation")
    with sieve(tiny.model, ByNorm(), 0.4), match:
        told(tiny.model, inputs, past_key_values=cache)


def test_only_new_ids_longer_than_a_plain_cache():
    """What the cache holds is not known then, and is no part of them."""
    tiny = build("qwen2_5_vl")
    sequences, _, cache = told(tiny.model, prompt(tiny, ids_of([1, 2])))
    whole = torch.cat([sequences, ids_of(picture(tiny.rows([1])[0]), SAID)], 1)
    inputs, new = prompt(tiny, whole, 1), whole.shape[1] - cache.get_seq_length()
    with sieve(tiny.model, ByNorm(), 0.4):
        wanted = told(tiny.model, inputs)
        for name in ("input_ids", "mm_token_type_ids"):
            inputs[name] = inputs[name][:, -new:]
        got = told(tiny.model, inputs, past_key_values=cache)
    assert_close(got[1], wanted[1], **CLOSE)


def test_an_emptied_cache_is_anybodys():
    tiny = build("llava")
    cache = StaticCache(tiny.model.config.get_text_config(), max_cache_len=64)
    first = prompt(tiny, ids_of([1], picture(tiny.rows([1])[0]), [7, 8]), 1)
    with sieve(tiny.model, ByNorm(), 0.4):
        told(tiny.model, first, past_key_values=cache)
    cache.reset()
    wanted = told(tiny.model, first)
    assert_close(told(tiny.model, first, past_key_values=cache)[1], wanted[1], **CLOSE)


def test_pickled_caches():
    """One that holds all is a plain one; one that holds less is refused, not let loose."""
    tiny = build("llava")
    whole, sequences = filled(tiny, keep=1.0)
    again = pickle.loads(pickle.dumps(whole))
    said = prompt(tiny, torch.cat([sequences, ids_of(SAID)], 1))
    wanted = told(tiny.model, said, past_key_values=whole)
    assert_close(told(tiny.model, said, past_key_values=again)[1], wanted[1], rtol=0, atol=0)
    short, _ = filled(tiny)
    for write in (pickle.dumps, lambda cache: torch.save(cache, io.BytesIO())):
        with pytest.raises(UnsupportedError, match="cannot be pickled"):
            write(short)


@pytest.mark.parametrize("method", [ByNorm(), "fastv"])
def test_a_cache_is_freed_with_its_last_name(method):
    tiny = build("llava")
    gc.collect()
    gc.disable()
    try:
        cache, _ = filled(tiny, method, **({"layer": 2} if method == "fastv" else {}))
        gone = weakref.ref(cache)
        del cache
        assert gone() is None
    finally:
        gc.enable()
