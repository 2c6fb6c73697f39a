"""The study of trainings under a sieve: every recipe is one, and a small one leaves a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.studies.sieved.measure import main
from tokensieve.methods.registry import method_names
from tokensieve.train.fusion.base import load_base
from tokensieve.train.fusion.recipe import make_recipe
from tokensieve.train.fusion.sieving import Sieving

STUDY = json.loads((Path(__file__).parents[2] / "lab/studies/sieved/recipes.json").read_text())


@pytest.mark.parametrize("recipe", STUDY["recipes"], ids=lambda recipe: str(recipe["name"]))
def test_every_recipe_is_one_that_nano_can_be_trained_by(recipe: dict[str, Any]) -> None:
    made = make_recipe("stage2", recipe["settings"])
    assert recipe["judged"] in method_names()
    depths = tuple(recipe["depths"]) if "depths" in recipe else None
    loaded = load_base("nano", recipe["model"], depths=depths)
    under = Sieving.of(loaded.model, made, 0, STUDY["steps"])  # refuses what the model cannot
    assert (recipe["judged"] if under is None else made.sieve.method) == recipe["judged"]


def test_a_small_study_leaves_a_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = STUDY | {
        "pictures": 8, "held_out": 4, "steps": 1, "batch": 2, "seeds": [0], "keeps": [0.125, 1.0],
        "recipes": [recipe for recipe in STUDY["recipes"] if recipe["name"] == "tokenflex"],
    }  # fmt: skip
    file = tmp_path / "s.json"
    file.write_text(json.dumps(small))
    command = [str(file), "--out", str(tmp_path / "o"), "--results", str(tmp_path / "r")]
    main(command)
    record = json.loads((tmp_path / "r/tokenflex-seed0.json").read_text())
    assert set(record["loss"]) == {"0.125", "1.0"}
    assert all(loss > 0 for loss in record["loss"].values())
    assert record["before"].keys() == record["loss"].keys()
    assert record["loss"]["0.125"] != record["loss"]["1.0"]
    monkeypatch.setattr("lab.studies.sieved.measure.measure", lambda *_: pytest.fail("made again"))
    main(command)
