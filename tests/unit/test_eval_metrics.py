"""Metrics by hand, as their papers define them."""

import pytest

from tokensieve.evaluate.metrics import METRICS, distance


@pytest.mark.parametrize(
    ("metric", "said", "right", "score"),
    [
        ("exact", " Paris. ", ["paris"], 1),
        ("exact", "Paris, France", ["Paris"], 0),
        # one exchange in "invoice" (7): 1 - 1/7; four of seven wrong: nothing
        ("anls", "invoise", ["INVOICE"], 6 / 7),
        ("anls", "invxyz", ["invoice"], 0),
        ("anls", "", ["a"], 0),
        ("anls", "abcd", ["zzzz", "abcx"], 0.75),
        # 5 % of 200 is 10
        ("relaxed", "210", ["200"], 1),
        ("relaxed", "211", ["200"], 0),
        ("relaxed", "0", ["0"], 1),
        ("relaxed", "0.1", ["0"], 0),
        ("relaxed", "1,234", ["1234"], 1),
        ("relaxed", "42%", ["0.42"], 1),
        ("relaxed", "Yes", ["yes"], 1),
        ("relaxed", "many", ["12"], 0),
        ("choice", "B", ["B"], 1),
        ("choice", "(b)", ["B"], 1),
        ("choice", "B. a cat", ["B"], 1),
        ("choice", "Because", ["B"], 0),
        ("choice", "A", ["B"], 0),
        ("yes-no", "Yes, there is.", ["yes"], 1),
        ("yes-no", "There is: yes", ["yes"], 0),
        ("yes-no", "No", ["yes"], 0),
        # two of ten people: left out once each of the two, 1/3; of the eight others, 2/3
        ("vqa", "cat", ["cat"] * 2 + ["dog"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("vqa", "cat", ["cat"] * 4 + ["dog"] * 6, 1),
        ("vqa", "cow", ["cat"] * 4 + ["dog"] * 6, 0),
    ],
)
def test_a_score_by_hand(metric, said, right, score):
    assert METRICS[metric](said, right) == pytest.approx(score)


def test_the_distance_counts_each_change_once():
    assert distance("kitten", "sitting") == 3
    assert distance("", "abc") == distance("abc", "") == 3
    assert distance("same", "same") == 0
