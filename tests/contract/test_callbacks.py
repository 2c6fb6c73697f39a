"""What a caller hands to `generate` sees the caller's prompt, as without a sieve."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from families.methods import ByNorm
from families.tiny import REQUIRED, build
from tokensieve.hf.calls import callbacks
from tokensieve.hf.sieve import sieve

NEW = 6
every_family = pytest.mark.parametrize("name", REQUIRED)


class Noted(LogitsProcessor):
    """Notes what it is shown, and makes no difference."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.clone())
        return scores


class StopsAfter(StoppingCriteria):
    """The usual criterion: looks at what stands behind the prompt."""

    def __init__(self, prompt_length, tokens):
        self.prompt_length, self.tokens = prompt_length, tokens

    def __call__(self, input_ids, scores, **kwargs):
        done = input_ids[:, self.prompt_length :].shape[1] >= self.tokens
        return torch.full((len(input_ids),), done)


def generated(model, inputs, **options):
    return model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})


def check_processors(tiny, **options):
    """Processors are shown the prompt as given and all tokens so far."""
    inputs, noted = tiny.inputs([1, 2]), Noted()
    with sieve(tiny.model, ByNorm(), 0.4):
        out = generated(
            tiny.model, inputs, logits_processor=LogitsProcessorList([noted]), **options
        )
    S = inputs["input_ids"].shape[1]
    rows = len(noted.seen[0]) // len(inputs["input_ids"])
    given = inputs["input_ids"].repeat_interleave(rows, 0)
    for step, ids in enumerate(noted.seen):
        assert torch.equal(ids[:, :S], given)
        assert ids.shape[1] == S + step
    if rows == 1:
        assert torch.equal(noted.seen[-1], out[:, : noted.seen[-1].shape[1]])


@every_family
def test_processors(name):
    check_processors(build(name))


def test_processors_of_beams():
    check_processors(build("llava"), num_beams=3)


def test_the_check_bites(monkeypatch):
    monkeypatch.setattr(callbacks.View, "whole", lambda self, ids: ids)
    with pytest.raises(AssertionError):
        check_processors(build("llava"))


@every_family
def test_a_criterion_counts_from_the_callers_prompt(name):
    tiny = build(name)
    inputs = tiny.inputs([2])
    stops = [StopsAfter(inputs["input_ids"].shape[1], 3)]
    plain = generated(tiny.model, inputs, max_new_tokens=30, stopping_criteria=stops)
    with sieve(tiny.model, ByNorm(), 0.4):
        out = generated(tiny.model, inputs, max_new_tokens=30, stopping_criteria=stops)
    assert out.shape == plain.shape
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3


def test_limits_of_transformers_own():
    """Criteria and processors of whole lengths, and of types `generate` makes too."""
    tiny = build("llava")
    inputs = tiny.inputs([2])
    S = inputs["input_ids"].shape[1]
    with sieve(tiny.model, ByNorm(), 0.4):
        limit = StoppingCriteriaList([MaxLengthCriteria(S + 4)])
        short = generated(tiny.model, inputs, max_new_tokens=30, stopping_criteria=limit)
        free = generated(tiny.model, inputs)
        end = int(free[0, S])  # what it would say first
        atleast = LogitsProcessorList([MinLengthLogitsProcessor(S + 3, end, device="cpu")])
        kept_on = generated(tiny.model, inputs, eos_token_id=end, logits_processor=atleast)
        at_once = generated(tiny.model, inputs, eos_token_id=end)
    assert short.shape[1] == S + 4
    assert at_once.shape[1] == S + 1
    assert kept_on.shape[1] >= S + 3


def test_arguments_by_place():
    """As `generate` takes them: inputs, configuration, processors."""
    tiny, noted = build("llava"), Noted()
    inputs = tiny.inputs([2])
    ids, rest = inputs["input_ids"], {k: v for k, v in inputs.items() if k != "input_ids"}
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    with sieve(tiny.model, ByNorm(), 0.4):
        out = tiny.model.generate(ids, config, LogitsProcessorList([noted]), **rest)
        assert torch.equal(out, generated(tiny.model, inputs))
    assert torch.equal(noted.seen[0], ids)


class Heard(BaseStreamer):
    def __init__(self):
        self.chunks = []

    def put(self, value):
        self.chunks.append(value.clone())

    def end(self):
        self.chunks.append(None)


@every_family
def test_a_streamer_is_first_put_the_prompt_as_given(name):
    tiny = build(name)
    inputs, heard = tiny.inputs([1]), Heard()
    with sieve(tiny.model, ByNorm(), 0.4):
        out = generated(tiny.model, inputs, streamer=heard)
    prompt, *tokens, end = heard.chunks
    assert end is None
    assert torch.equal(prompt, inputs["input_ids"])
    S = inputs["input_ids"].shape[1]
    assert torch.equal(torch.cat([t.flatten() for t in tokens]), out[0, S:])


def test_a_constraint_is_asked_about_the_whole_prompt():
    tiny = build("llava")
    inputs, asked = tiny.inputs([1, 2]), []
    S = inputs["input_ids"].shape[1]

    def allowed(prompt, ids):
        asked.append((prompt, ids.clone()))
        return [40 + len(ids) - S, 60]

    with sieve(tiny.model, ByNorm(), 0.4):
        out = generated(tiny.model, inputs, prefix_allowed_tokens_fn=allowed)
    for prompt, ids in asked:
        assert torch.equal(ids[:S], inputs["input_ids"][prompt])
    steps = torch.arange(NEW)
    assert bool(((out[:, S:] == 40 + steps) | (out[:, S:] == 60)).all())


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_guidance_runs_the_model_beside_the_prompt(method):
    """The unconditional pass is none of the call's own: as many tokens stay as without it."""
    tiny = build("llava")
    inputs = tiny.inputs([2])
    negative = torch.tensor([[5, 6, 7]])
    options = {"guidance_scale": 1.5, "negative_prompt_ids": negative}
    layer = {"layer": 2} if method == "fastv" else {}
    with sieve(tiny.model, method, 1.0, **layer):
        same = generated(tiny.model, inputs, **options)
    assert torch.equal(same, generated(tiny.model, inputs, **options))
    with sieve(tiny.model, method, 0.4, **layer) as report:
        guided = generated(tiny.model, inputs, **options)
        plain = generated(tiny.model, inputs)
    assert report.calls[0].kept_tokens == report.calls[1].kept_tokens < 32
    assert guided.shape == plain.shape
    assert not torch.equal(guided, plain)


def test_guidance_adds_what_the_formula_says():
    """log p(u) + s (log p(c) - log p(u)), with c the shortened prompt."""
    tiny = build("llava")
    inputs, S = tiny.inputs([2]), tiny.inputs([2])["input_ids"].shape[1]
    negative = torch.tensor([[5, 6, 7]])
    with sieve(tiny.model, "divprune", 0.4), torch.no_grad():
        out = tiny.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, guidance_scale=2.0,
            negative_prompt_ids=negative, output_scores=True, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    with torch.no_grad():
        unconditional = tiny.model(input_ids=negative).logits[:, -1].log_softmax(-1)
    conditional = out.logits[0].log_softmax(-1)
    wanted = unconditional + 2.0 * (conditional - unconditional)
    assert_close(out.scores[0], wanted, rtol=1e-4, atol=1e-4)
    assert out.sequences.shape[1] == S + 1
