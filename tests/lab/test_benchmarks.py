"""Both benchmarks of selection take every method of the registry."""

from __future__ import annotations

import pytest
import torch

from lab.benchmarks import patches, vectorised
from lab.benchmarks.prefill_share import select_seconds, steps_of
from lab.benchmarks.selection import inputs, measure, ready, timed
from tokensieve.methods.registry import method_class, method_names

UNTRAINED = [name for name in method_names() if timed(name) and not method_class(name).trained]


@pytest.mark.parametrize("name", UNTRAINED)
def test_the_choice_alone_is_timed(name: str) -> None:
    method = ready(name)
    row = measure(method, name, inputs(method, 64, 2, torch.bfloat16), 0.5, 1, naive=True)
    assert row["s"] > 0
    assert row["peak_mb"] >= 0


@pytest.mark.parametrize("name", vectorised.FORMS)
def test_a_vectorised_form_keeps_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = vectorised.measure(name, 64, 2, torch.float32, 0.25, 0.0)
    assert min(row["s"], row["vectorised_s"]) > 0
    other = vectorised.FORMS[name]

    def wrong(crops: vectorised.Crops) -> vectorised.Kept:
        return other(crops)[0].roll(1, 0) * 0, None

    monkeypatch.setitem(vectorised.FORMS, name, wrong)
    with pytest.raises(SystemExit, match="to keep the same"):
        vectorised.measure(name, 64, 2, torch.float32, 0.25, 0.0)


@pytest.mark.parametrize("name", ["divprune", "dymu", "pyramiddrop"])
def test_what_it_saves_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.benchmarks.prefill_share.CROP", 64)
    monkeypatch.setattr("lab.benchmarks.prefill_share.TOKENS", 64)
    method = ready(name)
    assert [left for _, left, _ in steps_of(method, 0.5)][-1] == 32
    with torch.inference_mode():
        assert select_seconds(method, 0.5, 1) > 0


@pytest.mark.slow
def test_fewer_patches_take_less() -> None:
    record = patches.record("tiny", [0.2], 1)
    full, late, early, lossless = record["rows"]
    assert (full["kept"], full["share"]) == (1.0, 1.0)
    assert late["kept"] == early["kept"] == pytest.approx(0.2, abs=0.01)
    assert early["encode_s"] < late["encode_s"] == full["encode_s"]
    assert 0 < lossless["kept"] < 1  # of a page's paper
    assert patches.counted(0.2, early=True) < patches.counted(0.2, early=False) < 1
