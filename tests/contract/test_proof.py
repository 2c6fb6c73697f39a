"""A model of an unlisted family shows on its first prompt that it reads shortened ones rightly."""

import logging
import threading

import pytest
import torch

from families import checks, inside
from families.checks import answer
from families.methods import ByNorm
from families.tiny import build
from tokensieve.errors import UnsupportedError
from tokensieve.hf import proof
from tokensieve.hf.families.table import FAMILIES
from tokensieve.hf.prompt import compaction
from tokensieve.hf.sieve import compress, sieve


@pytest.fixture
def unlisted(monkeypatch):
    """A tiny model whose family has no row, and that nobody has looked at."""

    def make(name):
        tiny = build(name)
        monkeypatch.delitem(FAMILIES, tiny.model.config.model_type)
        monkeypatch.setattr(proof, "_PROVEN", proof.WeakKeyDictionary())
        return tiny

    rows = dict(FAMILIES)
    yield make
    FAMILIES.clear()  # what is put back by itself stands at the end: lists in messages change
    FAMILIES.update(rows)


@pytest.fixture
def runs(monkeypatch):
    """How often a proof was run."""
    done, right = [], proof._Proof.run

    def run(self):
        done.append(1)
        return right(self)

    monkeypatch.setattr(proof._Proof, "run", run)
    return done


def shorten(tiny, **options):
    return compress(tiny.model, tiny.inputs([1, 2]), ByNorm(), 0.4, **options)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma"])
def test_a_right_one_proves_itself_once(name, unlisted, runs, caplog):
    tiny = unlisted(name)
    with caplog.at_level(logging.INFO, "tokensieve"):
        first, again = shorten(tiny), shorten(tiny)
    assert len(runs) == 1
    told = [record.getMessage() for record in caplog.records if record.name == "tokensieve"]
    assert len(told) == 1
    assert f"('{tiny.model.config.model_type}') proved itself in" in told[0]
    assert "as if blocked" in told[0]
    assert torch.equal(answer(tiny.model, first.inputs)[1], answer(tiny.model, again.inputs)[1])


def test_listed_and_trusted_ones_are_not_looked_at(unlisted, runs):
    shorten(build("llava_next"))
    shorten(unlisted("llava"), trusted=True)
    assert not runs


def test_a_sieve_proves_too(unlisted, runs):
    tiny = unlisted("llava")
    with sieve(tiny.model, ByNorm(), 0.4):
        _, logits = answer(tiny.model, tiny.inputs([1, 2]))
        answer(tiny.model, tiny.inputs([1]))
    assert len(runs) == 1
    assert torch.equal(logits, answer(tiny.model, shorten(tiny).inputs)[1])


def test_four_axes_taken_for_a_text_row_are_found(unlisted):
    with pytest.raises(UnsupportedError, match="not as if they were blocked"):
        shorten(unlisted("hunyuan_vl"))


def test_dropped_positions_are_found(unlisted):
    tiny = unlisted("exaone4_5")
    with pytest.raises(UnsupportedError, match=r"position ids.*positions='renumber' may do"):
        shorten(tiny)
    shorten(tiny, positions="renumber")


def test_what_is_not_handed_over_is_found(unlisted, monkeypatch):
    monkeypatch.setattr(compaction, "_ROWS", (*compaction._ROWS, "visual_indicator_features"))
    with pytest.raises(UnsupportedError, match="TypeError in its own code"):
        shorten(unlisted("ovis2"))


def test_rows_in_another_order_are_found(unlisted, monkeypatch):
    tiny, right = unlisted("llava"), compaction.Rows.output

    def rolled(self, *args):
        output = right(self, *args)
        output.pooler_output = [item.roll(1, 0) for item in output.pooler_output]
        return output

    monkeypatch.setattr(compaction.Rows, "output", rolled)
    with pytest.raises(UnsupportedError, match="keeps all its tokens is answered otherwise"):
        shorten(tiny)


def test_positions_that_are_not_read_are_found(unlisted, monkeypatch):
    """A decoder that counts by itself, whatever it is told."""
    tiny = unlisted("llava")
    rotary = tiny.model.model.language_model.rotary_emb
    right = rotary.forward

    def counted(hidden, position_ids):
        S = hidden.shape[1]
        return right(hidden, torch.arange(S)[None])

    monkeypatch.setattr(rotary, "forward", counted)
    with pytest.raises(UnsupportedError, match="not as if they were blocked"):
        shorten(tiny)


def test_it_leaves_no_trace(unlisted):
    tiny = unlisted("qwen2_5_vl")
    model, base = tiny.model, tiny.model.base_model
    answer(model, tiny.inputs([2]))
    hooks, deltas, state = inside.hooks_on(model), base.rope_deltas.clone(), torch.get_rng_state()
    shorten(tiny)
    assert inside.hooks_on(model) == hooks
    assert torch.equal(base.rope_deltas, deltas)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_in_training_is_looked_at_in_evaluation(unlisted, runs):
    tiny = unlisted("llava")
    dropout = torch.nn.Dropout(0.9)
    layer = tiny.model.model.language_model.layers[0]
    layer.mlp.act_fn, right = torch.nn.Sequential(layer.mlp.act_fn, dropout), layer.mlp.act_fn
    try:
        tiny.model.train()
        shorten(tiny)
        assert tiny.model.training
        assert dropout.training
    finally:
        layer.mlp.act_fn = right
        tiny.model.eval()
    assert len(runs) == 1


def test_threads_wait_for_one_proof(unlisted, runs):
    tiny = unlisted("llava")
    threads = [threading.Thread(target=shorten, args=(tiny,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1


def test_a_first_picture_behind_a_cache_proves_nothing(unlisted):
    tiny = unlisted("llava")
    with sieve(tiny.model, ByNorm(), 0.4):
        begun = tiny.model.generate(
            input_ids=torch.tensor([[1, 5, 7]]), max_new_tokens=2, return_dict_in_generate=True
        )
        inputs = tiny.inputs([1])
        inputs["input_ids"] = torch.cat([begun.sequences, inputs["input_ids"]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with pytest.raises(UnsupportedError, match="whose family tokensieve does not know"):
            tiny.model.generate(**inputs, past_key_values=begun.past_key_values, max_new_tokens=2)


def test_what_is_proven_is_exact(unlisted):
    tiny = unlisted("internvl")
    checks.check_blocked(tiny, checks.shorten)
