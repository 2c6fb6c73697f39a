"""Every family at every site in every mode of calling a model, as docs/results/families.md says."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import transformers as tf
from packaging.version import Version

from families import modes
from families.modes import EXACT, MODES, PLACES, REFUSED, UPSTREAM, WORKS, Ways, build, told
from families.page import RECORD, TEST, read_record
from tokensieve.hf.sieve import sieve

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    Version(tf.__version__) < Version("5.24"), reason="some of the families came with 5.24"
)


@pytest.fixture(scope="module")
def said():
    return read_record(ROOT / RECORD)


@pytest.mark.one_of_each
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_a_row_is_as_the_page_says(name, site, said):
    """If this fails: make families"""
    assert modes.row(name, site) == said[name][site]


def test_every_cell_of_the_page_has_its_test(said, collected):
    there = {item.nodeid for item in collected}
    wanted = {f"{TEST}[{name}-{site}]" for name, sites in said.items() for site in sites}
    assert wanted
    assert wanted <= there
    rows = [row for sites in said.values() for row in sites.values()]
    assert all([*row] == [*MODES] for row in rows)
    states = {EXACT, WORKS, REFUSED, UPSTREAM}
    assert all(state in states for row in rows for state, _ in row.values())
    assert all(bool(why) == (state in (REFUSED, UPSTREAM)) for row in rows for state, why in
               row.values())  # fmt: skip


def another(inputs):
    """The same prompts, but for their last two tokens."""
    ids = inputs["input_ids"].clone()
    ids[:, -2:] = ids[:, -2:] % 100 + 20
    return {**inputs, "input_ids": ids}


@pytest.mark.parametrize("mode", modes.CALLS)
def test_an_answer_to_another_prompt_is_found(mode, monkeypatch):
    """What a call is held against is the model on that very prompt, and told from one beside it."""
    shorter, told = Ways.shorter, modes.told

    @contextmanager
    def other(self, inputs):
        with shorter(self, another(inputs)) as short:
            yield short

    def other_turn(model, inputs, **options):
        turn = "past_key_values" in options
        return told(model, another(inputs) if turn else inputs, **options)

    monkeypatch.setattr(Ways, "shorter", other)
    monkeypatch.setattr(modes, "told", other_turn)
    with pytest.raises(AssertionError, match="it should"):
        modes.CALLS[mode](Ways(build("llava"), "embeds"))


def test_beams_of_glm_mix_up_pictures_upstream():
    """Its own code repeats each picture, where a prompt's pictures are to be repeated together."""
    tiny = build("glm4v")
    inputs = tiny.inputs([2])
    own = told(tiny.model, inputs, num_beams=2)[0]
    with modes.pictures_in_order(tiny.model):
        right = told(tiny.model, inputs, num_beams=2)[0]
    assert own.tolist() != right.tolist()
    with sieve(tiny.model, "stride", 1.0):
        assert told(tiny.model, inputs, num_beams=2)[0].tolist() == own.tolist()
