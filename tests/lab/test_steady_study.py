"""The study of steady averages: its record and page are those of its streams."""

import json

import pytest

from lab.studies.steady import __main__ as study
from tokensieve.hf.steady import Steady


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "MIXES", {"scenes": ("scene",)})
    monkeypatch.setattr(study, "KEEPS", (0.2,))
    monkeypatch.setattr(study, "SEEN", (8, 16, 24))


def test_record_and_page(small, tmp_path):
    told = ["--pictures", "24", "--results", str(tmp_path), "--root", str(tmp_path)]
    study.main(told)
    record = json.loads((tmp_path / "steady" / "nano.json").read_text())
    assert [row["method"] for row in record["rows"]] == ["selector", "dymu"]
    for row in record["rows"]:
        plain, steady = (abs(row[name][-1] / 0.2 - 1) for name in ("plain", "steady"))
        assert plain > 0.08
        assert steady < 0.5 * plain
    text = (tmp_path / "docs" / "results" / "steady.md").read_text()
    assert "| scenes | `selector` | 0.2 |" in text
    assert "over 24 pictures" in text


def test_a_correction_that_does_nothing_is_seen(small, monkeypatch, tmp_path):
    monkeypatch.setattr(Steady, "now", property(lambda self: self.keep))
    monkeypatch.setattr(study, "METHODS", {"selector": {"counts": "adaptive"}})
    (row,) = study.measure(4)["rows"]
    assert row["steady"] == row["plain"]
    assert "not corrected: `selector` at 0.2" in study.message([row], 40)
