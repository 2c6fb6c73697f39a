"""The page of selection beside fusion, from records made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.report.board import Board
from lab.studies.fusion import page as fusion_page
from lab.studies.fusion.page import scores, shapes_of
from lab.studies.fusion.rows import PANELS, TABLES, Row, hits_of
from lab.studies.fusion.summary import CURVES, LEAD, NAMES, mean_of, tokens_of
from tokensieve.cost.projectors import projector_flops
from tokensieve.errors import InputError
from tokensieve.evaluate import records
from tokensieve.evaluate.stats import pack_hits
from tokensieve.nn.fusion import FusionConfig

STUDY = {"arms": [{"name": "mlp", "projector": {"kind": "mlp", "kernel": 1}}, {"name": "stf"}]}


def record(arm: str, variant: str, seed: int, hits: dict[str, list[bool]], keep: float) -> Any:
    """Of one kind, by topic."""
    kind, topics = next(iter(hits)).split(".")[0], {k.split(".")[1]: v for k, v in hits.items()}
    rows = [
        {"topic": topic, "keep": keep, "n": len(h), "hits": pack_hits(np.array(h)),
         "kept_tokens": 64.0, "llm_prefill_flops": 1e9}
        for topic, h in topics.items()
    ]  # fmt: skip
    config = {"model": arm, "variant": variant, "seed": seed, "kind": kind, "pictures": 2}
    return {"form": "scores", "config": config, "rows": rows}


BOARD = Board(
    [
        record("stf", "full", 0, {"plain.text": [True, False], "plain.place": [True, True]}, 1.0),
        record("stf", "full", 1, {"plain.text": [True, True], "plain.place": [True, True]}, 1.0),
        record("stf", "full", 0, {"cluttered.place": [False, False]}, 1.0),
        record("stf", "full", 0, {"mixed.place": [False, True]}, 1.0),
        record("mlp", "selector-embeds", 0, {"plain.text": [True, True]}, 0.25),
    ]
)


def test_a_column_is_the_mean_of_its_parts() -> None:
    found = hits_of(BOARD, Row("stf"), "where")
    assert [h.tolist() for h in found] == [[True, True, False, False, False, True]]
    assert len(hits_of(BOARD, Row("stf"), "pages")) == 2
    assert hits_of(BOARD, Row("stf"), "scenes") == []


def test_rows_bring_their_costs() -> None:
    shapes = shapes_of(STUDY)
    rows = [Row("stf"), Row("mlp", "selector-embeds", 0.25), Row("mlp")]
    head, stf, plugged, missing = scores(BOARD, rows, shapes, {"stf/full@1": 0.456})
    assert head[1:] == ["seeds", "tokens", "parameters", "MFLOPs", "time", *PANELS]
    flops = (1e9 + projector_flops(shapes["stf"])) / 1e6
    assert stf[:6] == ["stf", "2", "64", "1.58 M", f"{flops:.0f}", "0.46"]
    assert stf[6:9] == ["75.0", "not run", "not run"]
    assert plugged[0] == "mlp, then selector-embeds"
    assert plugged[5:7] == ["", "**100.0**"]  # no time measured; the best of its column
    assert missing == ["mlp", "not run", *[""] * 10]


def test_every_row_is_of_an_arm_of_the_study() -> None:
    """Rows, arms and suite are three files; none may name what another lacks."""
    study = json.loads(fusion_page.ARMS.read_text())
    suite = json.loads(Path("lab/studies/fusion/suite.json").read_text())
    arms = {arm["name"] for arm in study["arms"]}
    assert set(suite["models"]) == arms
    for rows in (*[rows for _, _, rows in TABLES], *CURVES.values(), [row for _, row in LEAD]):
        for row in rows:
            assert row.arm in arms
            asked = [
                v for v in suite["variants"]
                if v["name"] == row.variant and row.arm in v.get("models", arms)
            ]  # fmt: skip
            assert any(row.keep in v["keeps"] for v in asked), row


def test_the_figure_is_of_what_was_run() -> None:
    assert set(NAMES) <= set(CURVES)
    assert tokens_of(BOARD, Row("stf")) == 64
    assert mean_of(BOARD, Row("stf"), "where") == 0.5
    assert mean_of(BOARD, Row("stf"), "text") is None  # one of its parts was not run


def test_the_page_says_what_was_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "fusion"
    config = ["lab/studies/fusion/suite.json", "--results", str(tmp_path / "results"), "--root",
              str(tmp_path)]  # fmt: skip
    with pytest.raises(InputError, match="Expected records in"):
        fusion_page.main(config)
    for number, made in enumerate(BOARD.records):
        records.write(folder / f"{number}.json", made)
    records.write(tmp_path / "results" / "fusion-time" / "llava.json", {
        "form": "fusion-time", "config": {},
        "llava": [{"name": "stf", "prefill": 0.27, "projector": 0.021}],
    })  # fmt: skip
    fusion_page.main(config)
    assert (tmp_path / "docs" / "figures" / "fusion.png").stat().st_size > 1000
    text = (tmp_path / "docs" / "results" / "fusion.md").read_text()
    for title, _, _ in TABLES:
        assert f"<summary>{title}</summary>" in text
    assert "| mbtf-stf | not run |" in text
    assert "stf minus mlp | not run" in text
    assert "| stf | 144 | 151.02 M | 1.9 | 0.043 | 0.27 | 0.021 |" in text


def test_the_papers_shapes() -> None:
    shapes = fusion_page.llava_shapes()
    assert shapes["mlp"] == FusionConfig(kind="mlp", kernel=1)
    assert {name: c.tokens for name, c in shapes.items()} == {
        "mlp": 576, "mbtf": 576, "stf": 144, "mbtf-stf": 144, "mbtf-stf, release": 144,
        "release, k 2, E 2": 288, "release, k 8, E 16": 144, "concat": 144, "avgpool": 144,
    }  # fmt: skip
