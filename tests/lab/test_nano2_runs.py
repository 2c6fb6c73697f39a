"""Lines to read on from, derived by hand from where their letters stand."""

import numpy as np
import pytest

from lab.nano.vocabulary import ANSWER
from lab.nano2.asking import EOS, PATCHES, VOCABULARY, example, pack, read_on, show
from lab.nano2.pages import Page
from lab.nano2.runs import READ, Run, ends, part_of, runs_of
from lab.nano2.words import CODE, UNSURE

LONG = "".join(chr(ord("A") + k % 26) + chr(ord("a") + k // 26) for k in range(40))


def page_of(*lines):
    """Characters of (text, x, y), 7 pixels apart."""
    places = [(x + 7 * k, y) for text, x, y in lines for k in range(len(text))]
    codes = [CODE.get(char, UNSURE) for text, _, _ in lines for char in text]
    image = np.zeros((336, 336, 3), np.uint8)
    return Page(image, np.array(places, float), np.array(codes), (), "lines", False)


def test_a_line_goes_on_to_the_right_and_ends_at_a_gap_or_another_height():
    drawn = page_of(("Total", 3, 10), ("4.20", 50, 10), ("Room7", 3, 30), ("Seat", 200, 30))
    texts = [text for text, _ in runs_of(drawn)]
    assert texts == ["Total4.20", "Room7", "Seat"]  # 31 to 50 is a gap of 19, 31 to 200 is none
    assert runs_of(drawn)[1][1] == [48, 48, 49, 49, 50]  # row 2; x of 3 10 17 24 31


def test_what_nobody_is_sure_of_ends_a_line():
    assert [t for t, _ in runs_of(page_of(("abcd~efgh", 3, 10)))] == ["abcd", "efgh"]


def test_what_is_given_stands_once_and_what_follows_is_read():
    runs = [Run("Total4.20", list(range(9))), Run("Tot", [30, 31, 32])]
    for seed in range(20):
        given, read, needs = part_of(np.random.default_rng(seed), runs[:1])
        begin = runs[0].text.index(given)
        assert 3 <= len(given) < 6
        assert runs[0].text[begin:] == given + read
        assert needs == list(range(begin, 9))
        assert ends(runs[:1], given, read)
    twice = [Run("abcdefg", list(range(7))), Run("ABCDEFG", list(range(7)))]
    assert part_of(np.random.default_rng(0), twice) is None


def test_a_long_line_is_cut_and_does_not_end_there():
    runs = [Run(LONG, list(range(80)))]
    cut = 0
    for seed in range(20):
        given, read, _ = part_of(np.random.default_rng(seed), runs)
        assert len(read) <= READ
        assert ends(runs, given, read) == (LONG.endswith(given + read) and len(read) < READ)
        cut += not ends(runs, given, read)
    assert cut > 10


@pytest.fixture
def one():
    entry = {"kind": "lines", "text": [0, 1, 2, 3], "asked": [["ab", "cd", [0, 1]]],
             "runs": [["efghij", [2, 2, 2, 3, 3, 3]]]}  # fmt: skip
    return example(0, entry)


def test_lines_are_read_beside_the_questions_and_only_where_asked_for(one):
    rng = np.random.default_rng(0)
    assert len(show(rng, one, PATCHES, 10)[1]) == 1
    shown, asked = show(rng, one, 4, 10, 3)
    assert len(asked) == 4
    assert set(shown.tolist()) == {0, 1, 2, 3}
    assert len(show(rng, one, 2, 10, 3)[1]) == 1  # no room for another line's patches


def test_an_answer_is_the_rest_of_the_line_and_its_end(one):
    (question,) = read_on(np.random.default_rng(1), one, 1)
    said = {number: char for char, number in VOCABULARY.items()}
    marker = question.ids.index(VOCABULARY[ANSWER])
    given, read = question.ids[:marker], question.ids[marker + 1 : -1]
    assert "".join(said[i] for i in given + read) in "efghij"
    assert (question.begin, question.named, question.ids[-1]) == (marker + 1, marker, EOS)
    batch = pack(np.random.default_rng(1), [one], 4, 1, 0.0, 0.0, 1)
    assert batch.segment.max() == 1
