"""Tokens inside the LLM that others joined are attended to as often as they stand for."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from families import decoders
from families.checks import CLOSE, NEW, answer
from families.inside import blocked, cut, kept_positions
from families.methods import InsideRagged
from families.tiny import build
from tokensieve.errors import UnsupportedError
from tokensieve.hf.families.table import places_of
from tokensieve.hf.llm.weights import added_to, stood_for
from tokensieve.hf.sieve import encode
from tokensieve.methods.registry import get_method
from tokensieve.types import Reduction


@dataclass(frozen=True)
class Joined(InsideRagged):
    """What goes joins the first token that stays, whose value is unchanged."""

    weighs_attention = True

    def reduce(self, vision, counts, text=None):
        kept = super().reduce(vision, counts, text).kept
        first = kept.byte().argmax(-1, keepdim=True)
        own = torch.arange(kept.shape[1]).expand(kept.shape)
        return Reduction(kept, None, own.where(kept, first).masked_fill(~vision.valid_BL, -1))


def weights(model, inputs, stage):
    """(B, S) how often each place of the prompt counts: one crop a picture."""
    kept, place = kept_positions(model, inputs, stage), places_of(model, inputs["input_ids"])
    encoded, done = encode(model, inputs), [0] * len(kept)
    out = torch.ones(kept.shape)
    for packing, prompt in zip(encoded.packings, encoded.prompt_of, strict=True):
        rows = len(packing.origin_N)
        at = place[prompt].nonzero()[done[prompt] : done[prompt] + rows, 0]
        done[prompt] += rows
        first = at[kept[prompt, at]][0]
        out[prompt, first] += int((~kept[prompt, at]).sum())
    return out


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mistral3", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("beams", [1, 2])
def test_what_others_joined_is_looked_at_as_often(name, attention, beams):
    """As if a model that was never cut looked at it so often, in the prompt and behind it."""
    made = decoders.build if name == "gemma3" else build  # which looks back through a window
    tiny = made(name) if attention == "sdpa" else made(name, "eager")
    inputs = tiny.inputs([1, 2])

    def call(model, inputs):
        if beams == 1:
            return answer(model, inputs)
        made = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, num_beams=beams)
        return made, torch.zeros(1)

    (tokens, logits), report = cut(tiny.model, inputs, Joined(), 1, call)
    often = weights(tiny.model, inputs, report.stages[0])
    assert float(often.max()) > 2
    with blocked(tiny.model, inputs, report.stages, weights_BS=often):
        wanted_tokens, wanted = call(tiny.model, inputs)
    assert torch.equal(tokens, wanted_tokens)
    assert_close(logits, wanted, **CLOSE)
    if beams == 1:
        with blocked(tiny.model, inputs, report.stages):
            once = call(tiny.model, inputs)[1]
        assert not torch.allclose(logits, once, **CLOSE)


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl"])
def test_layers_without_attention_weigh_nothing(name):
    tiny = decoders.build(name)
    inputs = tiny.inputs([1, 2])
    (_, logits), _ = cut(tiny.model, inputs, Joined(), 1)
    (_, once), _ = cut(tiny.model, inputs, InsideRagged(), 1)
    assert not torch.allclose(logits, once, **CLOSE)


def test_pact_weighs_its_clusters():
    tiny = build("llava")
    inputs = tiny.inputs([1])
    found = [
        cut(tiny.model, inputs, get_method("pact", important=1.0, proportional=weighs), {1: 0.3})
        for weighs in (True, False)
    ]
    assert not torch.allclose(found[0][0][1], found[1][0][1])


def test_attention_without_a_mask_of_numbers_is_refused(monkeypatch):
    tiny = build("llava")
    monkeypatch.setattr("tokensieve.hf.llm.weights.kind_of", lambda decoder: "flash_attention_2")
    with pytest.raises(UnsupportedError, match="or pass proportional=False"):
        cut(tiny.model, tiny.inputs([1]), Joined(), 1)


def test_two_tokens_alike_or_one_that_counts_twice():
    """Logits ln 1, ln 2: shares 1/3, 2/3. The second twice: 1/5, 4/5; as two tokens 2/5 each."""
    logits = torch.tensor([[[[0.0, 0.6931472]]]])
    mask = added_to(None, torch.tensor([[0.0, 0.6931472]]), 1, torch.float32)
    assert_close((logits + mask).softmax(-1)[0, 0, 0], torch.tensor([0.2, 0.8]))
    hidden = added_to(torch.tensor([[[[True, False]]]]), torch.zeros(1, 2), 1, torch.float32)
    assert_close((logits + hidden).softmax(-1)[0, 0, 0], torch.tensor([1.0, 0.0]))
    # one that stands for three takes in one, another is gone
    assign = torch.tensor([[0, 0, -1, 3]])
    assert stood_for(torch.tensor([[3.0, 1, 5, 1]]), assign).tolist() == [[4, 1, 1, 1]]
