"""Words in front of a picture (a system prompt) change nothing that is chosen by the question."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from families.inside import cut
from families.methods import ByText, Inside, InsidePeek
from families.registry import CLOSED, FIXED, before_the_llm, kept_of, ready
from families.tiny import NAMES, REQUIRED, SYSTEM, build, question_of
from tokensieve.hf.prompt.text import TEXT_MASK, Asked
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.types import Kind, Signal, Site

LONG = (*SYSTEM, 77, 88, 99, 66, 55, 44)
BEFORE = [n for n in method_names() if before_the_llm(n)]
READERS = [n for n in method_names() if "text" in method_class(n).needs]
INSIDE = [n for n in READERS if method_class(n).site is Site.LLM]


def check_same_with_words_in_front(family, method):
    """Kept sets with a system prompt and without one, alone and in a batch."""
    tiny = build(family)
    found = [
        kept_of(compress(tiny.model, tiny.inputs([1, 2], system=system), method, 0.4))
        for system in ((), SYSTEM, LONG)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", BEFORE)
@pytest.mark.parametrize("family", REQUIRED)
@pytest.mark.one_of_each
def test_a_method_before_the_llm_keeps_the_same(family, method):
    instance = ready(method, build(family).model)
    if instance.site is Site.ENCODER and family in CLOSED:
        return
    if instance.site in (Site.PIXELS, Site.PATCHES) and family in FIXED:
        return
    check_same_with_words_in_front(family, instance)


@pytest.mark.parametrize("family", NAMES)
def test_so_does_one_that_chooses_by_text_in_every_family(family):
    check_same_with_words_in_front(family, ByText())


@dataclass(frozen=True)
class Raters(Inside):
    """Remembers the words it was shown and how they attend to the picture."""

    needs = frozenset({"text"})
    seen: list = None

    def signals(self, encoder):
        return {"it": Signal(Kind.TEXT_ATTENTION)}

    def reduce(self, vision, counts, text=None):
        self.seen.append((vision.signals["it"], text.embeds))
        return super().reduce(vision, counts, text)


def shown_inside(tiny, inputs, layer=1):
    method = Raters([])
    cut(tiny.model, inputs, method, layer, lambda m, i: m(**i))
    return method.seen


def check_raters(family, system):
    """Inside the LLM the words are those behind the last picture, by their hidden states; each
    attends to it."""
    tiny = build(family)
    inputs = tiny.inputs([1, 1], system=system)
    with torch.no_grad():
        states = tiny.model(**inputs, output_hidden_states=True).hidden_states[1]
    asked = question_of(family, inputs)
    seen = shown_inside(tiny, inputs)
    assert len(seen) == len(asked) == 2
    by_length = {len(words): (attention, words) for attention, words in seen}
    for b, row in enumerate(asked):
        attention, words = by_length[int(row.sum())]
        assert_close(words, states[b][row])
        assert bool((attention.sum((0, 1)) > 0).all())


@pytest.mark.parametrize("system", [(), SYSTEM, LONG], ids=len)
@pytest.mark.parametrize("family", REQUIRED)
@pytest.mark.one_of_each
def test_raters_are_the_words_behind_the_picture(family, system):
    check_raters(family, system)


def let_in_what_stands_in_front(patch):
    patch.setattr(Asked, "behind_BS", property(lambda self: torch.ones_like(self.place_BS)))


@pytest.mark.parametrize("family", REQUIRED)
def test_the_contracts_bite(family, monkeypatch):
    let_in_what_stands_in_front(monkeypatch)
    with pytest.raises(KeyError):
        check_raters(family, SYSTEM)
    with pytest.raises(AssertionError):
        check_same_with_words_in_front(family, ByText())
    with pytest.raises(AssertionError):
        check_same_with_words_in_front(family, get_method("cdpruner"))


def question_in_front(tiny, pictures=1):
    """A prompt of the question and then the picture, which is the last of it."""
    inputs = tiny.inputs([pictures], text=(0,), system=LONG)
    last = int((inputs["input_ids"][0] == tiny.model.config.image_token_id).nonzero()[-1])
    for key, value in list(inputs.items()):
        if value.shape[:2] == inputs["input_ids"].shape and key != "input_ids":
            inputs[key] = value[:, : last + 1]
    inputs["input_ids"] = inputs["input_ids"][:, : last + 1]
    return inputs


@pytest.mark.parametrize("method", [n for n in READERS if method_class(n).budgeted])
@pytest.mark.parametrize("family", REQUIRED)
@pytest.mark.one_of_each
def test_a_question_in_front_still_chooses(family, method):
    """Before the LLM by all words; inside it by the last place of the prompt, which has seen both,
    not by attention that is zero: the choice is not the first tokens."""
    tiny = build(family)
    inputs, layer = question_in_front(tiny), {1: 0.6, 2: 0.3} if method in INSIDE else None
    with sieve(tiny.model, method, 0.3, layer=layer) as report:
        tiny.model.generate(**inputs, max_new_tokens=2)
    (image,) = report.calls[0].prompts[0].images
    kept = [crop.kept.tolist() for crop in image.crops]
    assert any(kept)
    assert any(crop != list(range(len(crop))) for crop in kept)


@pytest.mark.parametrize("kind", [Kind.LAST_ATTENTION, Kind.LAST_UNROTATED, Kind.TEXT_ATTENTION])
@pytest.mark.parametrize("layer", [1, {1: 0.5, 2: 0.3}], ids=str)
def test_no_signal_is_zero_where_the_question_stands_in_front(kind, layer, monkeypatch):
    monkeypatch.setattr(Raters, "signals", lambda self, encoder: {"it": Signal(kind)})
    for pictures in (1, 2):
        tiny = build("llava_next")
        for attention, words in shown_inside(tiny, question_in_front(tiny, pictures), layer):
            assert float(attention.sum()) > 0.05
            assert len(words) == 1


@pytest.mark.parametrize("method", [ByText(), InsidePeek([])], ids=["before", "inside"])
@pytest.mark.parametrize("family", REQUIRED)
@pytest.mark.one_of_each
def test_text_mask_says_what_the_question_is(family, method):
    """The same as a prompt of which only those tokens stand behind the picture, in a sieve, in a
    plain forward and in `compress`; and the model never gets it."""
    tiny = build(family)
    inputs = tiny.inputs([1, 2])
    named = question_of(family, inputs) & (torch.arange(inputs["input_ids"].shape[1]) % 2 == 0)
    masked = {**inputs, TEXT_MASK: named.long()}
    plain = tiny.model.generate(**inputs, max_new_tokens=2)
    layer = 2 if method.site is Site.LLM else None
    found = []
    for given in (inputs, masked):
        with sieve(tiny.model, method, 0.4, layer=layer) as report, torch.no_grad():
            out = tiny.model.generate(**given, max_new_tokens=2)
            tiny.model(**given)
        assert out.shape == plain.shape
        sets = [[[c.kept.tolist() for p in call.prompts for i in p.images for c in i.crops]
                 for call in report.calls]]  # fmt: skip
        assert sets[0][0] == sets[0][1]
        found.append(sets[0][0])
    if method.site is Site.LLM:
        sizes = [len(text.embeds) for _, text in method.seen[-3:]]
        assert set(sizes) == set(named.sum(-1).tolist())
        method.seen.clear()
        return
    assert found[0] != found[1]
    short = compress(tiny.model, masked, method, 0.4)
    assert kept_of(short) == found[1]
    assert TEXT_MASK not in short.inputs
    again = compress(tiny.model, encode(tiny.model, masked), method, 0.4)
    assert kept_of(again) == found[1]


def test_text_mask_goes_through_a_pair():
    tiny, peek = build("llava"), InsidePeek([])
    inputs = tiny.inputs([1])
    inputs[TEXT_MASK] = question_of("llava", inputs).long().cumsum(-1) == 2  # its second word
    with sieve(tiny.model, (ByText(), peek), (0.5, 0.25), layer=2):
        tiny.model.generate(**inputs, max_new_tokens=1)
    assert [len(text.embeds) for _, text in peek.seen] == [1]
