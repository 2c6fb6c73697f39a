"""What of a prompt a method sees, written out by hand. Tokens: p padding, s special, w a word, I a
row of a picture, a an answer that labels mark."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from families.tiny import BEGIN, END, IMAGE, PAD, VIDEO, build
from tokensieve.errors import PromptError
from tokensieve.hf.prompt.text import TEXT_MASK, Asked, special_ids, without_text_mask

SPECIAL, WORD = 7, 50


def asked(text: str, named: str | None = None) -> Asked:
    """One prompt; `named`: 1 where `text_mask` says that the question is."""
    ids = torch.tensor([[{"p": 0, "s": SPECIAL, "I": IMAGE}.get(c, WORD) for c in text]])
    answer = torch.tensor([[c == "a" for c in text]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[c != "p" for c in text]]).long()}
    if "a" in text:
        inputs["labels"] = ids.masked_fill(~answer, -100)
    if named is not None:
        inputs[TEXT_MASK] = torch.tensor([[int(c) for c in named]])
    config = SimpleNamespace(image_token_id=IMAGE, eos_token_id=[SPECIAL, 9], pad_token_id=0)
    config.get_text_config = lambda: config
    return Asked.of(SimpleNamespace(config=config), inputs)


def told(mask_BS: torch.Tensor) -> str:
    return "".join("1" if on else "." for on in mask_BS[0].tolist())


@pytest.mark.parametrize(
    ("text", "question", "seeing", "read"),
    [
        # a system prompt, the picture, the question, the template's last words
        ("pswwwIIIwwws", "........111.", "........111.", ".11111111111"),
        # the question behind the last of two pictures; padding on the right
        ("sIIwwIIwwpp", ".......11..", ".......11..", "111111111.."),
        # an answer is no part of the question, nor of what is read
        ("swIIwwaa", "....11..", "....11..", "111111.."),
        # the question in front: by embedding all words, inside the LLM the last place
        ("swwII", ".11..", "....1", "11111"),
        ("swwIIs", ".11...", ".....1", "111111"),
        # a caption to be learned: nothing is asked, the answer is not read
        ("sIIaa", "1....", "..1..", "111.."),
        # special tokens only, in front of the picture; and behind it
        ("sII", "1..", "..1", "111"),
        ("IIs", "..1", "..1", "111"),
        # no text at all
        ("II", "..", "..", "11"),
        # no picture: all of it
        ("psww", "..11", "..11", ".111"),
    ],
)
def test_sets_by_hand(text, question, seeing, read):
    found = asked(text)
    assert told(found.question_BS) == question
    assert told(found.seeing(found.real_BS)) == seeing
    assert told(found.read_BS) == read


def test_where_all_text_is_labelled_it_is_the_question_too():
    inputs = {"input_ids": torch.tensor([[50, IMAGE, 51]])}
    found = Asked.of(build("llava").model, {**inputs, "labels": inputs["input_ids"]})
    assert told(found.question_BS) == "..1"


@pytest.mark.parametrize(
    ("text", "named", "question", "seeing"),
    [
        ("swwIIwwww", "000001100", ".....11..", ".....11.."),
        # named in front: embeddings take it, inside the LLM only the last place has seen it all
        ("swwIIww", "0110000", ".11....", "......1"),
        # pictures and padding are no text; a prompt of which nothing is named is as ever
        ("pwIIww", "101100", "....11", "....11"),
        # special tokens, if it is said so
        ("sIIws", "00001", "....1", "....1"),
    ],
)
def test_a_mask_says_what_the_question_is(text, named, question, seeing):
    found = asked(text, named)
    assert told(found.question_BS) == question
    assert told(found.seeing(found.real_BS)) == seeing


def test_the_last_place_is_one_that_is_left():
    """The picture's last row went at an earlier layer."""
    found = asked("swwIIII")
    alive = found.real_BS & torch.tensor([[True] * 5 + [False] * 2])
    assert told(found.seeing(alive)) == "....1.."


def test_special_tokens_are_those_configs_name():
    qwen = special_ids(build("qwen2_5_vl").model)
    assert {IMAGE, VIDEO, BEGIN, END, PAD} <= qwen
    assert {IMAGE, PAD, 1, 2} <= special_ids(build("llava").model)  # Llama's begin and end
    assert all(isinstance(number, int) and not isinstance(number, bool) for number in qwen)


@pytest.mark.parametrize("wrong", [torch.ones(1, 3), torch.ones(3), [1, 1], "question"])
def test_a_mask_of_another_shape_is_refused(wrong):
    inputs = {"input_ids": torch.tensor([[5, IMAGE]]), TEXT_MASK: wrong}
    with pytest.raises(PromptError, match=r"`text_mask` as a tensor of the shape \(1, 2\)"):
        Asked.of(build("llava").model, inputs)


def test_the_model_never_gets_the_mask():
    assert without_text_mask({"input_ids": 1, TEXT_MASK: 2}) == {"input_ids": 1}
