"""The guarantee over random splits: a promise that is too bold is seen to break."""

import numpy as np
import pytest

from lab.studies.coverage import __main__ as study
from lab.studies.coverage.__main__ import KEEPS, kept, message, page
from tokensieve.evaluate.calibrate import Promise


def answers(rates, number=600):
    """Whether answers differ, at rates by keep, the same questions first."""
    return np.array([np.arange(number) < rate * number for rate in rates])


def test_promises_are_kept_as_often_as_said():
    """At keep .3 the true loss is a little above what is promised: it may be chosen seldom."""
    differ = answers([0, 0, 0.005, 0.01, 0.052, 0.2, 0.4])
    found = kept(Promise(0.05, 0.9), differ, 300)
    assert found.kept >= 0.9 * 300
    assert 0.3 <= found.keep <= 0.42
    assert found.nothing == 0
    assert 0 < found.loss < 0.02
    nothing = kept(Promise(0.01, 0.95), answers([0.2] * 7), 10)
    assert (nothing.nothing, nothing.kept, nothing.keep, nothing.loss) == (10, 10, 1.0, 0.0)


def test_a_choice_without_a_test_breaks_its_promise(monkeypatch):
    """The smallest keep that looks well enough, as it stands: what the test is for."""

    def bold(promise, counts):
        fine = [keep for keep, asked, differed in counts if differed <= promise.max_loss * asked]
        return min(fine, default=1.0), []

    monkeypatch.setattr(study, "certified", bold)
    differ = answers([0, 0, 0.005, 0.01, 0.055, 0.2, 0.4])
    assert kept(Promise(0.05, 0.9), differ, 300).kept < 0.9 * 300


def test_the_page_says_what_was_found():
    row = {"max_loss": 0.05, "confidence": 0.9, "splits": 1000, "kept": 960, "nothing": 0,
           "kept_on_other_half": 900, "keep": 0.3, "loss": 0.031}  # fmt: skip
    config = {"questions": 600, "method": "selector", "splits": 1000, "keeps": list(KEEPS)}
    text = page({"config": config, "rows": [row], "differ": [0.01] * len(KEEPS)})
    assert "| 5% | 90% | 96.0 % (94.6–97.0) | 90.0 %" in text
    assert "Every promise is kept at least as often as said" in text
    assert "1 of 1 promises are kept less often" in message([{**row, "kept": 800}])


def test_answers_become_a_record(tmp_path, monkeypatch):
    """Two pictures of a kind, three splits: everything but the number is real."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(study, "KEEPS", (0.5,))
    monkeypatch.setattr(study, "PROMISES", (Promise(0.5, 0.5),))
    told = ["--answers", str(tmp_path / "answers"), "--pictures", "1", "--splits", "3"]
    study.main([*told, "--results", str(tmp_path / "results"), "--root", str(tmp_path)])
    assert (tmp_path / "results" / "coverage" / "nano.json").exists()
    assert "3 random halves" in (tmp_path / "docs" / "results" / "coverage.md").read_text()
