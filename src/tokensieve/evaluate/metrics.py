"""How an answer in words is held against the right ones, in [0, 1].

Each takes what the model said and every answer that counts as right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]


def exact(said: str, right: Sequence[str]) -> float:
    """1 where it is one of them but for case and surrounding space."""
    return float(_plain(said) in map(_plain, right))


def anls(said: str, right: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity, of DocVQA and InfoVQA: the best 1 - distance over
    the longer one's length, 0 where half of it or more is wrong (ST-VQA, arXiv 1905.13648)."""
    best = 0.0
    for one in map(_plain, right):
        longest = max(len(one), len(_plain(said)))
        wrong = distance(_plain(said), one) / longest if longest else 0.0
        best = max(best, 1 - wrong if wrong < 0.5 else 0.0)
    return best


def relaxed(said: str, right: Sequence[str]) -> float:
    """1 where a number is within 5 % of a right one, or the words are equal (ChartQA, arXiv
    2203.10244)."""
    number = _number(said)
    for one in right:
        wanted = _number(one)
        if number is not None and wanted is not None:
            if number == wanted or (wanted and abs(number - wanted) <= 0.05 * abs(wanted)):
                return 1.0
        elif _plain(said) == _plain(one):
            return 1.0
    return 0.0


def choice(said: str, right: Sequence[str]) -> float:
    """1 where the letter it begins with, "B", "(b)" or "B. a cat", is the right one."""
    found = re.match(r"\W*([A-Za-z])(?![A-Za-z])", said)
    letter = found[1].upper() if found else ""
    return float(letter in {one.strip().strip("().").upper() for one in right})


def yes_no(said: str, right: Sequence[str]) -> float:
    """1 where the first word, yes or no, is the right one (POPE, MME)."""
    words = re.findall(r"[a-z]+", said.lower())
    first = words[0] if words and words[0] in ("yes", "no") else ""
    return float(bool(first) and first in map(_plain, right))


def vqa(said: str, right: Sequence[str]) -> float:
    """VQA's accuracy over the answers of several people: the mean, each of them left out once, of
    min(1, people who said so / 3) (arXiv 1505.00468). Without its rules for articles and numbers
    in words."""
    same = [_plain(one) == _plain(said) for one in right]
    if len(right) < 2:
        return float(any(same))
    return sum(min(1.0, (sum(same) - one) / 3) for one in same) / len(right)


METRICS: dict[str, Metric] = {
    "exact": exact, "anls": anls, "relaxed": relaxed, "choice": choice, "yes-no": yes_no,
    "vqa": vqa,
}  # fmt: skip


def distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and exchanges that make one text of the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _number(text: str) -> float | None:
    """As ChartQA reads it: a percentage is a share."""
    text = text.strip().rstrip(".").replace(",", "")
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
