"""Asking again under the same promise: by hand, and from answers to a page."""

import numpy as np

from lab.studies.cascade import __main__ as study
from lab.studies.cascade.__main__ import KEEPS, Answers, message, page, row

RATES = (0.0, 0.0, 0.0, 0.05, 0.2)  # of answers that differ, by keep


def answers(unsure):
    """600 questions; `unsure`: of the answers that differ, the share that is unsure."""
    order = np.random.default_rng(0).permutation(600)
    differ = np.array([order < rate * 600 for rate in RATES])
    sure = np.where(differ & (order < unsure * np.array(RATES)[:, None] * 600), 0.1, 1.0)
    kept = np.repeat(np.array(KEEPS)[:, None], 600, 1)
    return Answers(np.ones(600), 1.0 - differ, differ, sure, kept)


def test_the_unsure_are_asked_again_and_a_smaller_keep_holds():
    once, again = (row(answers(1.0), 0.02, sure, 50) for sure in (None, 0.8))
    assert (once["keep"], again["keep"]) == (0.3, 0.1)
    assert abs(again["tokens"] - (0.1 + 0.2)) < 0.02
    assert again["to_full"]["mean"] == 0
    assert again["kept"] == once["kept"] == 50
    useless = row(answers(0.0), 0.02, 0.8, 50)  # what differs is sure of itself
    assert useless["keep"] == 0.3


def test_answers_become_a_record_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "KEEPS", (0.5,))
    monkeypatch.setattr(study, "LOSSES", (0.5,))
    told = ["--answers", str(tmp_path / "answers"), "--pictures", "1", "--splits", "3"]
    study.main([*told, "--results", str(tmp_path / "results"), "--root", str(tmp_path)])
    text = (tmp_path / "docs" / "results" / "cascade.md").read_text()
    assert "3 random halves" in text
    assert "| 50% | never |" in text


def test_the_page_says_what_it_saves():
    rows = [row(answers(1.0), 0.02, sure, 20) for sure in (None, 0.8)]
    assert "reads no fewer tokens" in message([rows[0], {**rows[1], "tokens": 0.5}])
    config = {"questions": 600, "method": "selector", "splits": 20, "confidence": 0.95}
    text = page({"config": config, "rows": rows, "score": 1.0})
    assert "reads no fewer tokens on average: 30.0% of all instead of 30.0%" in text or (
        "reads fewer tokens on average" in text
    )
