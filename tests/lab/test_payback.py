"""The study of what a selector's size costs and is worth: its suite, its times, its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from lab.report.board import Board
from lab.studies.payback import measure as payback
from lab.studies.payback.page import message, write_page
from lab.studies.payback.spec import Shape, shape_of, shapes, trainings
from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate.config import Suite, Variant, load_suite
from tokensieve.train.selector.recipe import make_recipe
from tokensieve.types import EncoderInfo
from toys.eval_tiny import tiny_subject

SUITE = Path(__file__).parents[2] / "lab/studies/payback/suite.json"


def test_the_suite_names_shapes_and_where_their_weights_go() -> None:
    suite = load_suite(SUITE)
    assert shapes(suite)[0] == Shape(128, 3)
    first = next(trainings(suite))
    assert (first.shape, first.seed) == (Shape(128, 3), 0)
    assert str(first.weights) == "runs/payback/128x3/seed0/selector"
    assert shape_of("64 x 1") == Shape(64, 1)
    assert shape_of("64 x 1 more") is None


def test_a_suite_without_shapes_or_weights() -> None:
    with pytest.raises(ConfigError, match="variants named 'WIDTH x DEPTH' in the suite 's'"):
        shapes(Suite("s", (Variant("full", "full"),)))
    with pytest.raises(ConfigError, match="`weights` per seed for '8 x 1'"):
        list(trainings(Suite("s", (Variant("8 x 1", "selector"),))))


def test_what_is_trained_is_what_is_timed() -> None:
    info = EncoderInfo("toy", 16, -1, 2, 2, 32, (4, 5))
    for shape in (Shape(64, 1), Shape(16, 2)):
        trained = make_recipe(info, "default", shape.settings()).selector
        timed = shape.config(info)
        for field in ("width", "depth", "heads", "ffn", "rule"):
            assert getattr(trained, field) == getattr(timed, field), field


def test_times_are_ratios_of_one_run() -> None:
    subject, tried = tiny_subject(), [Shape(16, 1)]
    rows = payback.whole(subject, tried, (0.2, 0.5), 1)
    assert [(row["name"], row["keep"]) for row in rows] == [
        ("divprune", 0.2), ("16 x 1", 0.2), ("divprune", 0.5), ("16 x 1", 0.5)
    ]  # fmt: skip
    assert all(row["ratio"] > row["choose_ms"] / row["full_ms"] - 1e-3 for row in rows)
    wide = payback.among(payback.wide_tokens(8, 48, torch.bfloat16), tried, (0.25,), 1)
    assert [row["name"] for row in wide] == ["divprune", "16 x 1"]
    assert wide[0]["ratio"] == 1
    assert wide[1]["dtype"] == "bfloat16"


def record(model: str, ratios: dict[str, float], **more: object) -> dict[str, object]:
    rows = [
        {"name": name, "dtype": "float32", "keep": keep, "ratio": ratio - keep}
        for name, ratio in ratios.items()
        for keep in (0.05, 0.5)
    ]
    return {"form": "payback", "config": {"model": model, "threads": 1, **more}, "rows": rows,
            "machine": {"cpu": "a CPU"}}  # fmt: skip


def test_the_page_says_which_shapes_pay(tmp_path: Path) -> None:
    suite = Suite("s", (Variant("64 x 1", "selector"), Variant("128 x 3", "selector")),
                  keeps=(0.05, 0.5))  # fmt: skip
    times = tmp_path / "s-time"
    with pytest.raises(InputError, match=r"Run python -m lab\.studies\.payback\.measure"):
        write_page(suite, times, tmp_path)
    times.mkdir()
    told = {"64 x 1": 0.9, "128 x 3": 1.3, "divprune": 0.8}
    for name, one in (("a", record("nano", told)),
                      ("b", record("", {"64 x 1": 1.5}, width=1024, tokens=2880))):  # fmt: skip
        (times / f"{name}.json").write_text(json.dumps(one))
    write_page(suite, times, tmp_path)
    text = (tmp_path / "docs/results/payback.md").read_text()
    assert "**Below full's prefill at every share: 64 x 1 of 2.**" in text
    assert "| 128 x 3 | not run | 1.25 | not run |" in text
    assert "| 64 x 1 | not run | 0.85 | 1.45 |" in text
    none = message(suite, Board([]), [record("nano", {"64 x 1": 2.0})], ["64 x 1"])
    assert none == "Below full's prefill at every share: none of 1."
