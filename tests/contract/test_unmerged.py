"""DyMU's virtual unmerging: attention over the sequence written out in full, layer by layer."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from families.checks import answer
from families.tiny import build
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf.encoder.dymu import calibrate_dymu
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.sieve import compress, sieve
from tokensieve.methods.registry import get_method

FAMILIES = ["llava", "llava_next", "llava_onevision"]


def ready(family: str, pictures: list[int], attention: str = "sdpa"):
    tiny = build(family)
    tiny.model.set_attn_implementation(attention)
    inputs = tiny.inputs(pictures)
    return tiny.model, inputs, calibrate_dymu(tiny.model, [inputs], shares=(0.5,))


def slots(model, inputs, report) -> tuple[list[int], list[int]]:
    """Of one prompt: which token left stands at each place of the prompt, and at which place."""
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    crops = [crop for image in report.calls[0].prompts[0].images for crop in image.crops]
    goes, at = {}, iter(places)
    for crop in crops:  # crops without newline rows stand one behind the other
        own = {i: next(at) for i in range(len(crop.valid))}
        for i, into in enumerate(crop.assign.tolist()):
            goes[own[i]] = own[into]
    length = inputs["input_ids"].shape[1]
    owner = [goes.get(place, place) for place in range(length)]
    kept = sorted(set(owner))
    return [kept.index(place) for place in owner], kept


@contextmanager
def written_out(model, slot: list[int]):
    """Every attention of the LLM runs on all places, one row for each, and averages what comes."""
    decoder, undo = decoder_of(model), []
    for layer in decoder.layers:
        module, plain = layer.self_attn, layer.self_attn.forward

        def forward(hidden_states, *args, plain=plain, **kwargs):
            behind = hidden_states.shape[1] - (max(slot) + 1)
            every = torch.tensor(slot + [max(slot) + 1 + i for i in range(behind)])
            whole, M = hidden_states[:, every], len(every)
            kwargs["position_embeddings"] = decoder.rotary_emb(whole, torch.arange(M)[None])
            kwargs["attention_mask"] = torch.ones(M, M, dtype=torch.bool).tril()[None, None]
            kwargs |= {"past_key_values": None, "cache": None} & kwargs.keys() and {}
            out, weights = plain(
                whole,
                **{
                    k: v
                    for k, v in kwargs.items()
                    if "cache" not in k and k not in ("past_key_values", "hidden_states")
                },
            )
            mean = [out[:, every == t].mean(1) for t in range(hidden_states.shape[1])]
            return torch.stack(mean, 1), weights

        module.forward = forward
        undo.append(module)
    try:
        yield
    finally:
        for module in undo:
            del module.forward


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_that_of_the_sequence_written_out(attention):
    model, inputs, table = ready("llava", [1], attention)
    model.eval()
    with torch.no_grad(), sieve(model, "dymu", 0.5, thresholds=table, unmerge=True) as report:
        got = answer(model, inputs)
    slot, kept = slots(model, inputs, report)
    assert max(slot) + 1 < len(slot)
    ids = got.sequences
    length = inputs["input_ids"].shape[1]
    short = compress(model, inputs, "dymu", 0.5, thresholds=table)
    told = {k: v for k, v in short.inputs.items() if k not in ("position_ids", "attention_mask")}
    behind = ids[:, length:-1]
    told["input_ids"] = torch.cat([told["input_ids"], behind], 1)
    eager = attention == "eager"
    with torch.no_grad(), written_out(model, slot):
        if eager:
            model.set_attn_implementation("sdpa")  # which takes the mask of truths above
        want = model(**told, use_cache=False).logits[0, len(kept) - 1 :]
    model.set_attn_implementation(attention)
    got_logits = torch.stack(got.logits, 1)[0]
    assert_close(got_logits, want, atol=2e-5, rtol=1e-4)
    with torch.no_grad(), sieve(model, "dymu", 0.5, thresholds=table):
        plain = torch.stack(answer(model, inputs).logits, 1)[0]
    assert (plain - got_logits).abs().max() > 1e-3  # merged tokens alone are another sequence


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_read_alike_alone_and_in_a_batch(family):
    model, inputs, table = ready(family, [1, 2])
    tiny = build(family)
    with sieve(model, "dymu", 0.5, thresholds=table, unmerge=True):
        both = answer(model, inputs).logits[0]
        alone = torch.cat([answer(model, tiny.inputs([n])).logits[0] for n in (1, 2)])
    assert both.shape == alone.shape


def test_beams_and_a_plain_forward():
    model, inputs, table = ready("llava", [1])
    with torch.no_grad(), sieve(model, "dymu", 0.5, thresholds=table, unmerge=True):
        first = answer(model, inputs).logits[0][0]
        assert_close(model(**inputs).logits[0, -1], first, atol=2e-5, rtol=1e-4)
        beams = model.generate(**inputs, num_beams=2, max_new_tokens=3, do_sample=False)
    assert beams.shape[1] == inputs["input_ids"].shape[1] + 3


def test_what_cannot_be_unmerged_is_said():
    model, inputs, table = ready("llava", [1])
    options = {"thresholds": table, "unmerge": True}
    with pytest.raises(UnsupportedError, match=r"with unmerge in a `sieve`, by itself"):
        compress(model, inputs, "dymu", 0.5, **options)
    method = get_method("dymu", **options)
    with pytest.raises(UnsupportedError, match=r"with unmerge in a `sieve`, by itself"):
        with sieve(model, (method, "fastv"), keep=(0.5, 0.25)):
            model(**inputs)
    with (
        pytest.raises(ConfigError, match="unmerged, each at its place. Got 'renumber'"),
        sieve(model, "dymu", 0.5, positions="renumber", **options),
    ):
        model(**inputs)
    internvl = build("internvl")
    other = internvl.inputs([1])
    thresholds = calibrate_dymu(internvl.model, [other], shares=(0.5,))
    with (
        pytest.raises(UnsupportedError, match="which joins them. Leave `unmerge` out"),
        sieve(internvl.model, "dymu", 0.5, thresholds=thresholds, unmerge=True),
    ):
        internvl.model(**other)
