"""Times of fused and of chosen tokens: every row of the page has one."""

from __future__ import annotations

import pytest

from lab.studies.fusion import speed as fusion_times
from lab.studies.fusion.rows import TABLES, Row


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
