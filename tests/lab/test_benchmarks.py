"""Both benchmarks of selection take every method of the registry, that of fusion every row."""

from __future__ import annotations

import pytest
import torch

from lab.benchmarks.prefill_share import select_seconds, steps_of
from lab.benchmarks.selection import inputs, measure, ready, timed
from lab.studies.fusion import speed as fusion_times
from lab.studies.fusion.rows import TABLES, Row
from tokensieve.methods.registry import method_class, method_names

UNTRAINED = [name for name in method_names() if timed(name) and not method_class(name).trained]


@pytest.mark.parametrize("name", UNTRAINED)
def test_the_choice_alone_is_timed(name: str) -> None:
    method = ready(name)
    row = measure(method, name, inputs(method, 64, 2, torch.bfloat16), 0.5, 1, naive=True)
    assert row["s"] > 0
    assert row["peak_mb"] >= 0


@pytest.mark.parametrize("name", ["divprune", "dymu", "pyramiddrop"])
def test_what_it_saves_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.benchmarks.prefill_share.CROP", 64)
    monkeypatch.setattr("lab.benchmarks.prefill_share.TOKENS", 64)
    method = ready(name)
    assert [left for _, left, _ in steps_of(method, 0.5)][-1] == 32
    with torch.inference_mode():
        assert select_seconds(method, 0.5, 1) > 0


def test_every_row_of_the_page_of_fusion_has_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projector and LLM of each, the choice where tokens are dropped; shares are of `mlp`'s."""
    rows = [Row("mlp"), Row("stf"), Row("stf", "fused-selector", 0.5), Row("mlp", "divprune", 0.25)]
    gone = [Row("mlp", "no-image"), Row("mlp", "downsample", 0.25)]
    monkeypatch.setattr(fusion_times, "TABLES", [("title", "about", [*rows, *gone])])
    found = {row["key"]: row for row in fusion_times.nano(1)}
    assert list(found) == [row.key for row in rows]
    assert found[rows[0].key]["ratio"] == 1
    for row in rows:
        parts = found[row.key]["ms"]
        assert [name.split()[0] for name in parts] == [
            "projector", "llm", *(["select"] if row.keep < 1 else []),
        ]  # fmt: skip
        assert sum(parts.values()) > 0
    assert {row.arm for _, _, table in TABLES for row in table} >= {"mlp", "stf"}
