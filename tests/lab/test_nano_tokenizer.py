"""The tokenizer of nano: characters for keys and numbers, words for words, nothing crashes."""

from __future__ import annotations

import pytest

from lab.nano.vocabulary import ANSWER, build_tokenizer, key_positions
from tokensieve.data.synth import KINDS, generate

TOKENIZER = build_tokenizer()


def tokens(text: str) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(TOKENIZER(text)["input_ids"])


def test_keys_and_numbers_are_read_by_character() -> None:
    assert tokens("What is KX?") == ["what", "is", "k", "x", "?"]
    assert tokens("417") == ["4", "1", "7"]


def test_case_and_spelling_do_not_matter() -> None:
    assert tokens("WHAT COLOR is the circle?") == tokens("what colour is the Circle?")


def test_answers_come_back_as_written() -> None:
    for text in ("417", "top left", "centre", "red"):
        assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


@pytest.mark.parametrize("text", ["", "wibble", "¿qué? 🙂", "What\nis  KX", "a" * 500])
def test_any_text_is_read_without_a_crash(text: str) -> None:
    assert isinstance(tokens(text + "?"), list)


@pytest.mark.slow
def test_every_generated_question_is_in_the_vocabulary() -> None:
    for kind in KINDS:
        for seed in range(20):
            for question in generate(kind, seed).questions:
                ids = TOKENIZER(question.text + question.answer)["input_ids"]
                assert TOKENIZER.unk_token_id not in ids


def test_key_letters_are_found_only_in_questions_that_name_a_key() -> None:
    assert key_positions(TOKENIZER("What is KX?")["input_ids"]) == [2, 3]
    assert key_positions(TOKENIZER("How many objects are there?")["input_ids"]) == []


def test_chat_template_puts_the_picture_first_and_the_marker_last() -> None:
    talk = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}]}]
    text = TOKENIZER.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == f"<image>Hi{ANSWER}"
