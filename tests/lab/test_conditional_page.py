"""Scoring, records and tables of tokens dropped inside the LLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from lab.studies.conditional import page as inside
from tokensieve.cost.flops import (
    decode_flops,
    decode_flops_by_layer,
    prefill_flops,
    prefill_flops_by_layer,
)
from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import ConfigError, InputError, UnknownNameError, WeightsError
from tokensieve.evaluate import run
from tokensieve.evaluate.config import Suite, Variant, load_suite
from tokensieve.evaluate.score import Batch, append, prompt, score
from tokensieve.evaluate.subject import Subject
from tokensieve.evaluate.tasks import load_tasks
from tokensieve.hf.encoder.encode import encode
from tokensieve.hf.load import load_model
from tokensieve.hf.sieve import sieve
from toys.eval_tiny import tiny_subject

SHAPE = TransformerShape(2, 32, 88, 4, 4, 8, vocab=100)
SUITE = Suite(
    suite="tiny",
    variants=(
        Variant("full", "full", keeps=(1.0,)),
        Variant("conditional-at-1", "stride", layer=1, keeps=(0.2,)),
        Variant("random-at-1", "random", layer=1, keeps=(0.2,)),
        Variant("selector", "stride", keeps=(0.2, 0.6)),
    ),
    kinds=("plain",),
    keeps=(0.2, 0.6, 1.0),
    pictures=3,
    split="val",
    batch=2,
    prompt="ask-first",
)


def test_agrees_with_generate_inside_a_sieve() -> None:
    """The very tokens `generate` gives are marked right; any other token is marked wrong."""
    subject = tiny_subject()
    items = load_tasks("mixed", "val", 3)[1].items
    texts = [prompt(subject.processor, item.question.text, "ask-first") for item in items]
    images = [item.image for item in items]
    inputs = dict(subject.processor(images=images, text=texts, padding=True, return_tensors="pt"))
    with sieve(subject.model, "stride", keep=0.2, layer=1):
        out = subject.model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    told = out[:, -3:].tolist()
    method = subject.bound("stride", {}, 1)
    for wrong in (None, 0, 2):
        answers = [list(answer) for answer in told]
        if wrong is not None:
            answers[1][wrong] = 7 if told[1][wrong] != 7 else 8
        encoded = encode(subject.model, append(inputs, answers))
        found = score(subject.model, Batch(items, encoded), method, 0.2, positions="keep", layer=1)
        assert found.hits == [True, wrong is None, True]
        assert (found.visual_tokens, found.kept_tokens) == (3 * 256, 3 * 51)
        assert found.layer_tokens == 3 * (256 + 51) / 2


def test_prompts_have_the_question_on_both_sides() -> None:
    text = prompt(tiny_subject().processor, "Which?", "ask-first")
    assert text == "Which?<image>Which?>"


def test_flops_by_layer_add_up() -> None:
    assert prefill_flops_by_layer(SHAPE, [50, 50]) == prefill_flops(SHAPE, 50)
    head = 2 * SHAPE.width * SHAPE.vocab
    whole, less = prefill_flops(SHAPE, 50) - head, prefill_flops(SHAPE, 20) - head
    assert prefill_flops_by_layer(SHAPE, [50, 20]) == (whole + less) // 2 + head
    with pytest.raises(ConfigError, match="Expected 2 token counts"):
        prefill_flops_by_layer(SHAPE, [1])
    assert decode_flops_by_layer(SHAPE, [50, 50], 4) == decode_flops(SHAPE, 50, 4)
    ends = decode_flops(SHAPE, 50, 4) + decode_flops(SHAPE, 20, 4)
    assert 2 * decode_flops_by_layer(SHAPE, [50, 20], 4) == ends
    with pytest.raises(ConfigError, match="Expected 2 token counts"):
        decode_flops_by_layer(SHAPE, [1], 4)


def test_options_at_their_defaults_leave_the_identity_of_records_alone() -> None:
    plain = Suite("s", (Variant("full", "full"),))
    config = next(plain.jobs()).config(plain, {})
    assert "layer" not in config
    assert "prompt" not in config
    asked = next(job for job in SUITE.jobs() if job.variant.layer).config(SUITE, {})
    assert (asked["layer"], asked["prompt"]) == (1, "ask-first")


def test_an_unknown_form_of_prompt_is_said(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.write_text('{"suite": "x", "variants": [], "prompt": "ask-frist"}')
    with pytest.raises(UnknownNameError, match="Did you mean 'ask-first'"):
        load_suite(path)


def test_another_reader_of_nano_is_looked_for(tmp_path: Path) -> None:
    missing = r"Expected a complete safetensors file at .*gone\.safetensors\. Got: no such file"
    with pytest.raises(WeightsError, match=missing):
        load_model(f"nano+{tmp_path}/gone.safetensors")


def test_records_become_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def subject(_name: str, _beside: object) -> Subject:
        return tiny_subject()

    monkeypatch.setattr(run, "load_subject", subject)
    torch.manual_seed(0)
    assert len(run.run(SUITE, tmp_path / "results" / "tiny")) == 4
    suite = tmp_path / "suite.json"
    suite.write_text(
        '{"suite": "tiny", "kinds": ["plain"], "keeps": [0.2, 0.6, 1.0], "prompt": "ask-first",'
        ' "variants": [{"name": "full", "method": "full", "keeps": [1.0]},'
        ' {"name": "conditional-at-1", "method": "stride", "layer": 1, "keeps": [0.2]},'
        ' {"name": "random-at-1", "method": "random", "layer": 1, "keeps": [0.2]},'
        ' {"name": "gone-at-1", "method": "random", "layer": 1, "keeps": [0.2]},'
        ' {"name": "selector", "method": "stride", "keeps": [0.2, 0.6]}]}'
    )
    where = ["--results", str(tmp_path / "results"), "--root", str(tmp_path)]
    inside.main([str(suite), *where])
    text = (tmp_path / "docs" / "results" / "conditional.md").read_text()
    assert "@ 60% |" in text  # (256 + 51) / 2 of 256
    assert "@ 20% |" in text
    assert "| gone-at-1 | not run |" in text
    assert "| plain (text) | 60.0% | 0.0 (0.2) | 0.0 |" in text  # beside the selector at keep .6
    with pytest.raises(InputError, match="Expected records in"):
        inside.main([str(suite), "--results", str(tmp_path / "none"), "--root", str(tmp_path)])
