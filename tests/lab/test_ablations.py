"""Ablations: one training per distinct setting, measures that tell, a page of what ran."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from lab.report.markdown import spread
from lab.studies.ablations.page import table, write_report
from lab.trained import train as command
from lab.trained.measure import auc, state_of
from lab.trained.spec import Training, trainings, variants
from tokensieve.errors import ConfigError
from tokensieve.evaluate import records
from tokensieve.train.console import log_to_terminal
from toys.train_toys import toy_store

ROOT = Path(__file__).parents[2]
SPEC = {
    "suite": "ablations",
    "settings": {"selector.depth": 1, "reconstructor.depth": 1, "train.steps": 2,
                 "train.batch": 4},
    "seeds": [0, 1], "kinds": ["cluttered"], "keeps": [0.1], "pictures": 2, "split": "val",
    "groups": {
        "estimator-objective": {"title": "Estimator", "note": "n", "variants": {"ours": {}}},
        "depth": {"title": "Depth", "note": "n", "axis": "layers",
                  "variants": {"1": {"selector.depth": 1}, "2": {"selector.depth": 2}}},
    },
}  # fmt: skip


def test_equal_settings_are_one_training_and_first_seeds_come_first() -> None:
    found = list(trainings(SPEC))
    assert [(one.settings["selector.depth"], one.seed) for one in found] == [
        (1, 0), (2, 0), (1, 1), (2, 1),
    ]  # fmt: skip
    assert variants(SPEC, "depth")["1"][0].folder == found[0].folder
    assert Training({"b": 1, "a": 2}, 0).folder == Training({"a": 2, "b": 1}, 0).folder
    assert len({one.folder for one in found}) == 4
    with pytest.raises(ConfigError, match="Expected `seeds` and `groups`"):
        list(trainings({"seeds": []}))


def test_the_shipped_spec_is_trainable_settings() -> None:
    from tokensieve.train.selector.recipe import make_recipe
    from toys.train_toys import ENCODER

    spec = json.loads((ROOT / "lab/studies/ablations/suite.json").read_text())
    found = list(trainings(spec))
    assert len(found) > 60
    for one in found:
        make_recipe(ENCODER, "default", one.texts)
    assert set(variants(spec, "depth")) == {"1", "2", "3", "4", "8"}
    assert len(variants(spec, "estimator-objective")) == 10  # ours and three by three


def test_what_is_missing_is_trained_in_shares(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    common = [str(tmp_path / "spec.json"), "--features", str(toy_store(tmp_path / "store")),
              "--out", str(tmp_path / "runs")]  # fmt: skip
    command.main([*common, "--shard", "0/2"])
    assert len(list((tmp_path / "runs").glob("*/selector/config.json"))) == 2
    command.main([*common, "--shard", "1/2"])
    done = {path.parents[1].name for path in (tmp_path / "runs").glob("*/selector/config.json")}
    assert done == {one.folder for one in trainings(SPEC)}


def test_auc_is_the_chance_to_outrank() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 0.0])
    wanted = torch.tensor([True, False, True, False])
    assert auc(scores, wanted) == 1.0
    assert auc(-scores, wanted) == 0.0
    assert auc(torch.zeros(4), wanted) == 0.5
    assert auc(torch.tensor([0.0, 1.0, 2.0, 3.0]), wanted) == 0.25
    assert auc(scores, torch.ones(4, dtype=torch.bool)) is None


@pytest.mark.parametrize(
    ("kept", "state"),
    [([0.5] * 90 + [1.0] * 10, "all ones"), ([0.5] * 90 + [0.0] * 10, "all zeros"),
     ([1.0] * 90 + [0.5] * 10, "ranks"), ([0.5] * 90 + [1.0, 0.5] * 5, "ranks")],
)  # fmt: skip
def test_a_collapsed_mask_is_named(kept: list[float], state: str) -> None:
    assert state_of(kept) == state


def test_the_page_says_means_extremes_and_what_is_not_run(tmp_path: Path) -> None:
    for one, value in zip(variants(SPEC, "depth")["1"], (0.5, 0.7), strict=True):
        records.write(tmp_path / "results" / f"{one.folder}.json", {
            "config": {"seed": one.seed}, "state": "ranks", "auc": {"cluttered": value},
            "scores": {"cluttered": {"0.1": {"mean": value}}},
            "curve": [{"step": s, "kept": 0.3, "reconstruction": 1.0} for s in range(4)],
        })  # fmt: skip
    found = {p.stem: records.read(p) for p in (tmp_path / "results").glob("*.json")}
    text = table(SPEC, "depth", found)
    assert "| 1 | 60.0 (50.0–70.0) | 0.600 (0.500–0.700) | 0.30 | some |" in text
    assert "| 2 | not run |" in text
    assert spread([1.0, 1.0], ".1f") == "1.0"
    write_report(SPEC, Path("spec.json"), tmp_path / "results", tmp_path / "docs")
    assert (
        "<summary>Depth</summary>" in (tmp_path / "docs" / "results" / "ablations.md").read_text()
    )
    assert (tmp_path / "docs" / "figures" / "ablation-curves.png").stat().st_size > 1000


def test_a_command_hears_what_it_asked_for_whatever_ran_before(capsys) -> None:
    logger = logging.getLogger("tokensieve.train")
    log_to_terminal(logging.WARNING)
    logger.info("not this")
    log_to_terminal()
    logger.info("but this")
    assert capsys.readouterr().err == "but this\n"
