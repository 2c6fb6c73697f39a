"""The page of towers that are not CLIP, from what their training leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.studies.worlds import page as worlds
from tokensieve.errors import InputError


def test_the_page_of_towers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make results-worlds"):
        worlds.main([str(tmp_path), "--results", str(tmp_path / "r"), "--docs", str(tmp_path)])
    run = tmp_path / "siglip-default"
    (run / "selector").mkdir(parents=True)
    (run / "selector" / "config.json").write_text("{}")
    (run / "train.json").write_text(json.dumps({"recipe": {"train": {"steps": 5}}}))
    lost = {"0.2": {"selector": 0.5, "random": 0.7, "stride": 0.6}}
    (run / "validation.jsonl").write_text(json.dumps({"step": 4, "lost": lost, "crops": 9}) + "\n")
    (run / "log.jsonl").write_text('{"step": 4, "crops_per_s": 12.4}\n')
    worlds.main([str(tmp_path), "--results", str(tmp_path / "r"), "--docs", str(tmp_path)])
    page = (tmp_path / "results" / "worlds.md").read_text()
    assert "| siglip | default | 0.500 | 0.700 | 0.600 | 12 |" in page
    assert "After 5 steps, on 9 held-out crops" in page
