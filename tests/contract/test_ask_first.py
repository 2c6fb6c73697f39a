"""Conditional selection: the question stands in front of the picture, or the user is told."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers.processing_utils import ProcessorMixin

from tokensieve import sieve
from tokensieve.errors import QuestionWarning, UnsupportedError
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.evaluate.prepare import prepared
from tokensieve.hf.families.fingerprint import llm_info
from tokensieve.hf.prompt.template import picture_prompt
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.nn.selector import Selector, SelectorConfig
from toys.extract_tiny import noise
from toys.real_processors import MAKERS

IN_ORDER = (
    "{% for m in messages %}w7 w8 {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}w9"
)
PICTURES_FIRST = (
    "{% for m in messages %}w7 w8 {% for c in m['content'] | selectattr('type', 'equalto', 'image')"
    " %}<image> {% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] }} {% endfor %}{% endfor %}w9"
)
TEMPLATES = {"in order": IN_ORDER, "pictures first": PICTURES_FIRST, "none": None}
QUESTIONS = ("w20 w21 w22", "w30 w31 w32 w33 w34")


@pytest.fixture(params=["siglip", "qwen", "internvl"])
def loaded(request, monkeypatch):
    """LLaVA, Qwen2.5-VL and InternVL with processors of theirs."""
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    made = MAKERS[request.param]()
    made.processor.chat_template = IN_ORDER
    if request.param == "siglip":  # as drawn, its text hardly moves anything
        generator = torch.Generator().manual_seed(5)
        for weight in made.model.model.language_model.parameters():
            if weight.ndim > 1:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.data = drawn * 2 / weight.shape[-1] ** 0.5
    return made


def conditional(loaded, layer=1):
    torch.manual_seed(0)
    selector = Selector(SelectorConfig(encoder=llm_info(loaded.model, layer), depth=1)).eval()
    for weight in selector.parameters():
        weight.data = torch.randn(weight.shape) * 0.5
    return get_method("conditional", weights=selector)


def kept(loaded, question, *, in_front):
    inputs = prepared(loaded, noise(40, 40, seed=1), question, in_front=in_front)
    with warnings.catch_warnings(), torch.no_grad(), sieve(
        loaded.model, conditional(loaded), keep=0.3
    ) as report:  # fmt: skip
        warnings.simplefilter("ignore")
        loaded.model(**inputs)
    return [c.kept.tolist() for i in report.calls[0].prompts[0].images for c in i.crops]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_question_stands_before_the_picture_and_behind_it(loaded, template):
    processor = loaded.processor
    processor.chat_template = TEMPLATES[template]
    text, _ = picture_prompt(processor, "w20 w21", 2, in_front=True)
    front, between, behind = text.split("w20 w21")
    assert between.count("<image>") == 2
    assert "<image>" not in front + behind
    plain, _ = picture_prompt(processor, "w20 w21", 2)
    assert plain.count("<image>") == 2


def test_what_is_kept_depends_on_a_question_in_front_and_on_no_other(loaded):
    first, second = (kept(loaded, q, in_front=True) for q in QUESTIONS)
    assert first != second
    first, second = (kept(loaded, q, in_front=False) for q in QUESTIONS)
    assert first == second


@pytest.mark.parametrize("template", ["in order", "none"])
def test_a_picture_before_its_question_is_told_once(loaded, template):
    loaded.processor.chat_template = TEMPLATES[template]
    inputs = [prepared(loaded, noise(40, 40, seed=1), q) for q in QUESTIONS]
    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("always", QuestionWarning)
        with sieve(loaded.model, conditional(loaded), keep=0.3):
            for one in inputs:
                loaded.model(**one)
    (mine,) = [w for w in told if w.category is QuestionWarning]
    for word in ("Expected the question before", "Got a picture with", "--ask-first"):
        assert word in str(mine.message)


@pytest.mark.parametrize("question", [*QUESTIONS, "w20 w21"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_question_in_front_is_silent(loaded, template, question):
    loaded.processor.chat_template = TEMPLATES[template]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", QuestionWarning)
        inputs = prepared(loaded, noise(40, 40, seed=1), question, in_front=True)
        with sieve(loaded.model, conditional(loaded), keep=0.3):
            loaded.model(**inputs)


def test_a_mask_of_the_question_decides(loaded):
    inputs = dict(prepared(loaded, noise(40, 40, seed=1), QUESTIONS[0]))
    mask = torch.zeros_like(inputs["input_ids"])
    mask[:, 0] = 1  # the template's own first word
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", QuestionWarning)
        with sieve(loaded.model, conditional(loaded), keep=0.3):
            loaded.model(**inputs, text_mask=mask)
        mask = mask.flip(-1)  # behind the picture
        with sieve(loaded.model, conditional(loaded), keep=0.3), pytest.raises(QuestionWarning):
            loaded.model(**inputs, text_mask=mask)


def test_other_methods_do_not_care(loaded):
    inputs = prepared(loaded, noise(40, 40, seed=1), QUESTIONS[0])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", QuestionWarning)
        with sieve(loaded.model, "fastv", keep=0.3, layer=1):
            loaded.model(**inputs)


def test_ask_answers_under_a_conditional_method(loaded, tmp_path):
    conditional(loaded).weights.save_pretrained(tmp_path)
    settings = Settings(
        keep=0.5, max_new_tokens=2, ask_first=True, options={"weights": str(tmp_path)}
    )
    got = ask(loaded, noise(40, 40, seed=1), QUESTIONS[0], "conditional", settings)
    assert 0 < got.kept_tokens < got.visual_tokens
    assert got.new_tokens == 2


def test_methods_say_whether_they_are_conditional():
    assert [n for n in method_names() if method_class(n).conditional] == ["conditional"]


def test_a_template_that_cannot_is_refused():
    def told(talk, **_):
        raise ValueError("one text a turn")

    for template in (told, lambda talk, **_: "w1 <image> w2"):
        processor = SimpleNamespace(
            chat_template="x", apply_chat_template=template, image_token="<image>"
        )
        with pytest.raises(UnsupportedError, match=r"Expected a chat template .* Got .* Ask"):
            picture_prompt(processor, "w20 w21", in_front=True)
