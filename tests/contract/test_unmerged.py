"""DyMU's virtual unmerging: attention over the sequence written out in full, layer by layer."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from families.checks import CLOSE, answer
from families.tiny import build
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf.encoder.dymu import calibrate_dymu
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.families.table import decoder_of
from tokensieve.hf.llm import unmerge
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
    packing = encode(model, inputs).packings[0]
    of_row = dict(zip(places, packing.origin_N.tolist(), strict=True))
    place_of = {origin: place for place, origin in of_row.items()}
    crops = report.calls[0].prompts[0].images[0].crops
    joins = torch.cat([crop.assign + n * packing.length for n, crop in enumerate(crops)]).tolist()
    owner = list(range(inputs["input_ids"].shape[1]))
    for place, origin in of_row.items():
        if origin >= 0:  # not the end of a row
            owner[place] = place_of[joins[origin]]
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


@pytest.mark.parametrize(
    ("family", "attention"), [("llava", "sdpa"), ("llava", "eager"), ("llava_next", "sdpa")]
)
def test_attention_is_that_of_the_sequence_written_out(family, attention):
    model, inputs, table = ready(family, [1], attention)
    model.eval()
    with torch.no_grad(), sieve(model, "dymu", 0.5, thresholds=table, unmerge=True) as report:
        tokens, got = answer(model, inputs)
    slot, kept = slots(model, inputs, report)
    assert max(slot) + 1 < len(slot)
    short = compress(model, inputs, "dymu", 0.5, thresholds=table)
    told = {k: v for k, v in short.inputs.items() if k not in ("position_ids", "attention_mask")}
    told["input_ids"] = torch.cat([told["input_ids"], tokens[:, :-1]], 1)
    eager = attention == "eager"
    with torch.no_grad(), written_out(model, slot):
        if eager:
            model.set_attn_implementation("sdpa")  # which takes the mask of truths above
        want = model(**told, use_cache=False).logits[0, len(kept) - 1 :]
    model.set_attn_implementation(attention)
    assert_close(got[0], want, **CLOSE)
    with torch.no_grad(), sieve(model, "dymu", 0.5, thresholds=table):
        plain = answer(model, inputs)[1]
    assert (plain - got).abs().max() > 1e-3  # merged tokens alone are another sequence


@pytest.mark.parametrize("part", ["turned", "averaged"])
def test_a_wrong_attention_is_seen(monkeypatch, part):
    """Without rotary positions of their own, or with the sum of what places attend to."""
    model, inputs, table = ready("llava", [1])
    wrong = {"turned": lambda self, values: values,
             "averaged": lambda self, out, length: right(self, out, length) * 2}  # fmt: skip
    right = getattr(unmerge._Laid, part)
    with sieve(model, "dymu", 0.5, thresholds=table, unmerge=True):
        want = answer(model, inputs)[1][:, 0]
        monkeypatch.setattr(unmerge._Laid, part, wrong[part])
        assert (answer(model, inputs)[1][:, 0] - want).abs().max() > 10 * CLOSE["atol"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_prompt_is_answered_as_alone(family):
    model, inputs, table = ready(family, [1, 2])
    with sieve(model, "dymu", 0.5, thresholds=table, unmerge=True):
        together = answer(model, inputs)[1]
        alone = answer(model, build(family).inputs([1]))[1]
    assert_close(together[:1], alone, **CLOSE)


def test_beams_and_a_plain_forward():
    model, inputs, table = ready("llava", [1])
    with torch.no_grad(), sieve(model, "dymu", 0.5, thresholds=table, unmerge=True):
        first = answer(model, inputs)[1][0, 0]
        assert_close(model(**inputs).logits[0, -1], first, **CLOSE)
        beams = model.generate(**inputs, num_beams=2, max_new_tokens=3, do_sample=False)
    assert beams.shape[1] == inputs["input_ids"].shape[1] + 3


def test_what_cannot_be_unmerged_is_said():
    model, inputs, table = ready("llava", [1])
    options = {"thresholds": table, "unmerge": True}
    with pytest.raises(UnsupportedError, match=r"with unmerge in a `sieve`, by itself"):
        compress(model, inputs, "dymu", 0.5, **options)
    method = get_method("dymu", **options)
    with (
        pytest.raises(UnsupportedError, match=r"with unmerge in a `sieve`, by itself"),
        sieve(model, (method, "fastv"), keep=(0.5, 0.25)),
    ):
        model(**inputs)
    with (
        pytest.raises(ConfigError, match=r"unmerged, each at its place\. Got 'renumber'"),
        sieve(model, "dymu", 0.5, positions="renumber", **options),
    ):
        model(**inputs)
    internvl = build("internvl")
    other = internvl.inputs([1])
    thresholds = calibrate_dymu(internvl.model, [other], shares=(0.5,))
    with (
        pytest.raises(UnsupportedError, match=r"which joins them\. Leave `unmerge` out"),
        sieve(internvl.model, "dymu", 0.5, thresholds=thresholds, unmerge=True),
    ):
        internvl.model(**other)
