"""The study of what a selector's size costs and is worth: its suite, its times, its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from lab.report.asked import picture_inputs
from lab.studies.payback import measure as payback
from lab.studies.payback.kept import Seen, count_kept
from lab.studies.payback.page import message, write_page
from lab.studies.payback.spec import Shape, shape_of, shapes, trainings
from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate.config import Suite, Variant, load_suite
from tokensieve.hf.encoder.encode import encode
from tokensieve.methods.registry import get_method
from tokensieve.train.selector.recipe import make_recipe
from tokensieve.types import EncoderInfo, VisionTokens
from toys.eval_tiny import tiny_subject

SUITE = Path(__file__).parents[2] / "lab/studies/payback/suite.json"


def test_the_suite_names_shapes_and_where_their_weights_go() -> None:
    suite = load_suite(SUITE)
    assert Shape(128, 3) in shapes(suite)
    first = next(trainings(suite))
    assert (first.shape, first.seed) == (shapes(suite)[0], 0)
    assert str(first.weights) == "runs/payback/256x1/seed0/selector"
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
        for field in ("width", "depth", "heads", "ffn", "rule", "words"):
            assert getattr(trained, field) == getattr(timed, field), field


def test_times_are_ratios_of_one_run() -> None:
    subject, tried = tiny_subject(), [Shape(16, 1)]
    encoded = encode(subject.model, picture_inputs(subject, 0))
    assert payback.tokens_of(subject, encoded) == 256
    rows = payback.whole(subject, encoded, tried, (0.2, 0.5), 1)
    assert [(row["name"], row["keep"]) for row in rows] == [
        ("divprune", 0.2), ("16 x 1", 0.2), ("divprune", 0.5), ("16 x 1", 0.5)
    ]  # fmt: skip
    assert all(row["ratio"] > row["choose_ms"] / row["full_ms"] - 1e-3 for row in rows)
    vision = payback.wide_tokens(16, 48)
    wide = payback.among(vision, tried, (0.25,), 1)
    assert [row["name"] for row in wide] == ["divprune", "16 x 1"]
    assert wide[0]["ratio"] == 1
    alone = payback.layers(vision, tried, ("float32", "bfloat16"), 1)
    assert [(row["name"], row["dtype"]) for row in alone] == [
        ("16 x 1", "float32"), ("16 x 1", "bfloat16"), ("16 x 3", "float32")
    ]  # fmt: skip


def test_a_question_counts_where_nothing_of_it_is_lost() -> None:
    tokens = torch.zeros(1, 4, 2)
    tokens[0, [0, 3]] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the smallest norms: 1 and 2
    page = Seen(VisionTokens(tokens, grid=(2, 2)), (frozenset({1, 2}), frozenset({1, 3})))
    rows = list(count_kept("norm", get_method("feature-norm"), [page, page], (0.5, 1.0)))
    assert [(row["whole"], row["questions"]) for row in rows] == [(2, 4), (4, 4)]


def record(model: str, ratios: dict[str, float], **more: object) -> dict[str, object]:
    rows = [
        {"name": name, "keep": keep, "ratio": ratio - keep}
        for name, ratio in ratios.items()
        for keep in (0.05, 0.5)
    ]
    return {"form": "payback", "config": {"model": model, "threads": 1, "tokens": 5, **more},
            "rows": rows, "layers": [{"name": "64 x 1", "dtype": "float32", "ms": 1234.4}],
            "machine": {"cpu": "a CPU"}}  # fmt: skip


def test_the_page_says_which_shapes_pay(tmp_path: Path) -> None:
    suite = Suite("s", (Variant("64 x 1", "selector"), Variant("128 x 3", "selector")),
                  keeps=(0.05, 0.1, 0.5))  # fmt: skip
    times = tmp_path / "s-time"
    with pytest.raises(InputError, match=r"Run python -m lab\.studies\.payback\.measure"):
        write_page(suite, times, tmp_path)
    times.mkdir()
    told = {"shipped": 0.7, "64 x 1": 0.9, "128 x 3": 1.3, "divprune": 0.8}
    kept = [{"name": "64 x 1", "keep": 0.1, "whole": right, "questions": 4} for right in (1, 2)]
    for name, one in (("a", record("nano", told)),
                      ("b", record("", {"64 x 1": 1.5}, width=1024)),
                      ("kept", {"form": "payback-kept", "config": {}, "rows": kept})):  # fmt: skip
        (times / f"{name}.json").write_text(json.dumps(one))
    write_page(suite, times, tmp_path)
    text = (tmp_path / "docs/results/payback.md").read_text()
    assert "left: at most 0.65 of full's prefill on `nano`. Below full's prefill" in text
    assert "`divprune`: 64 x 1 of 2.**" in text
    assert "| 128 x 3 | not run | 1.25 | not run |" in text
    assert "| 64 x 1 | 37.5 | 0.85 | 1.45 |" in text
    assert "| shipped | not run | 0.65 |  |" in text
    assert "| 64 x 1 | 1,234 |" in text
    none = message(suite, [record("nano", {"64 x 1": 2.0})], [], ["64 x 1"])
    assert none.endswith("times `divprune`: none of 1.")
    slow = message(suite, [record("nano", told)], [record("", {"64 x 1": 3.1}, width=9)],
                   ["64 x 1"])  # fmt: skip
    assert slow.endswith("none of 1.")
