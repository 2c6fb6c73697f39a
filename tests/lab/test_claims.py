"""The queue of the papers' trainings: what groups start from, order, what is skipped, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.studies.claims import queue
from lab.studies.claims.choose import chosen, found_in
from lab.trained.spec import variants
from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import TrainingError
from tokensieve.methods.registry import method_names
from tokensieve.train.selector.recipe import make_recipe
from toys.train_toys import ENCODER, toy_store

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = {
    "model": "nano", "seeds": [0], "kinds": ["cluttered"], "keeps": [0.1], "pictures": 2,
    "split": "val", "choose": {"kinds": ["cluttered"], "keeps": [0.1]},
    "settings": {"selector.depth": 1, "reconstructor.depth": 1, "train.epochs": 1,
                 "train.batch": 32, "run.on_collapse": "log"},
    "groups": {
        "reading": {"preset": "when-less-is-enough", "settings": {"train.lr": 0.001}, "variants": {
            "mse": {"objective.reduction": "mse"}, "rms": {"objective.reduction": "rms"}}},
        "rate": {"preset": "when-less-is-enough", "from": "reading",
                 "variants": {"high": {}, "low": {"train.lr": 0.0001}}},
        "best": {"preset": "adaptive", "from": "rate", "seeds": [0, 1],
                 "settings": {"reconstructor.image_depth": 0}, "variants": {"best": {}}},
    },
    "order": [["best", 1], ["reading", 0], ["rate", 0], ["best", 0]],
}  # fmt: skip


def told(spec: dict[str, Any], group: str, means: dict[str, float], found: dict[str, Any]) -> None:
    """Records of a group's variants with these means."""
    for name, ones in variants(spec, group, chosen(spec, found)).items():
        for one in ones:
            found[one.folder] = {"scores": {"cluttered": {"0.1": {"mean": means[name]}}}}


def test_groups_start_from_what_read_best() -> None:
    found: dict[str, Any] = {}
    assert chosen(SPEC, found) == {}
    assert variants(SPEC, "rate", {}) == variants(SPEC, "best", {"reading": "rms"}) == {}
    told(SPEC, "reading", {"mse": 0.7, "rms": 0.4}, found)
    assert chosen(SPEC, found) == {"reading": "mse"}
    told(SPEC, "rate", {"high": 0.7, "low": 0.9}, found)
    both = chosen(SPEC, found)
    assert both == {"reading": "mse", "rate": "low"}
    first, second = variants(SPEC, "best", both)["best"]
    assert (first.seed, second.seed, first.preset) == (0, 1, "adaptive")
    assert first.settings["objective.reduction"] == "mse"
    assert first.settings["train.lr"] == 0.0001  # of the rate, which stands above the reading's
    reading = variants(SPEC, "reading")["mse"][0]
    assert variants(SPEC, "rate", both)["high"][0].folder == reading.folder  # one training


def test_a_group_of_which_one_is_not_measured_chooses_nothing() -> None:
    found: dict[str, Any] = {}
    told(SPEC, "reading", {"mse": 0.7, "rms": 0.4}, found)
    found.pop(variants(SPEC, "reading")["rms"][0].folder)
    assert chosen(SPEC, found) == {}


def test_the_queue_trains_all_that_can_be_and_then_the_rest(tmp_path, monkeypatch) -> None:
    better = {"mse": 0.2, "rms": 0.6}

    def judged(self: Any, folder: Path) -> dict[str, Any]:
        said = json.loads((folder / "train.json").read_text())["recipe"]["objective"]["reduction"]
        return {"state": "ranks", "scores": {"cluttered": {"0.1": {"mean": better[said]}}}}

    monkeypatch.setattr(queue.Judge, "measure", judged)
    store = FeatureStore([toy_store(tmp_path / "store", crops=32)])
    monkeypatch.setattr(queue, "config_of", lambda spec, one, folder: {"seed": one.seed})
    work = (SPEC, store, tmp_path / "runs", tmp_path / "results")
    queue.work(*work)
    # the first stage waits for what it starts from; the others are there, equal trainings once
    assert len(list((tmp_path / "results").glob("*.json"))) == 4
    assert "best, seed 1: waits" not in queue.listing(SPEC, tmp_path / "results")
    monkeypatch.setattr(queue, "train_one", _never)
    with pytest.raises(AssertionError, match="trained"):
        queue.work(*work)  # what waited is all that is left
    assert queue.listing(SPEC, tmp_path / "results").count("to do") == 1


def _never(*_: object) -> Path:
    raise AssertionError("trained")


def test_a_training_that_diverges_is_recorded_and_the_next_begins(tmp_path, monkeypatch) -> None:
    def failing(*_: object) -> Path:
        raise TrainingError("Expected a loss that falls. It averages 9.")

    monkeypatch.setattr(queue, "train_one", failing)
    store = FeatureStore([toy_store(tmp_path / "store", crops=32)])
    queue.work(SPEC, store, tmp_path / "runs", tmp_path / "results")
    found = list(found_in(tmp_path / "results").values())
    assert {one["state"] for one in found} == {"stopped"}
    assert all("a loss that falls" in one["error"] for one in found)
    assert len(found) == 4  # worth nothing, but measured: what starts from it is tried all the same


def test_the_shipped_spec_is_trainable_and_its_order_is_whole() -> None:
    spec = json.loads((ROOT / "lab/studies/claims/suite.json").read_text("utf-8"))
    found: dict[str, Any] = {}
    ordered = {(group, number) for group, number in spec["order"]}
    assert {group for group, _ in ordered} == {*spec["groups"], "peers"}
    assert set(spec["peers"]) <= set(method_names())
    for name, group in spec["groups"].items():
        seeds = group.get("seeds", spec["seeds"])
        assert {(name, number) for number in range(len(seeds))} <= ordered, name
    for group in ("reading", "rate"):
        for ones in variants(spec, group, chosen(spec, found)).values():
            for one in ones:
                found[one.folder] = {"scores": {}}
    assert set(chosen(spec, found)) == {"reading", "rate"}
    for name in spec["groups"]:
        for ones in variants(spec, name, chosen(spec, found)).values():
            for one in ones:
                make_recipe(ENCODER, one.preset, one.texts)
