"""Presets, settings and the schedule."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tokensieve.data.store.features import FeatureStore
from tokensieve.errors import ConfigError, MissingPackageError, TrainingError, UnknownNameError
from tokensieve.train.batches import Batches, Rows
from tokensieve.train.journal import check_tracker
from tokensieve.train.selector.recipe import (
    SECTIONS,
    TrainConfig,
    load_preset,
    make_recipe,
    preset_names,
)
from tokensieve.train.selector.watch import CollapseWatch, DivergenceWatch
from tokensieve.train.settings import as_settings
from toys.train_toys import ENCODER, toy_store


def test_presets_say_what_the_papers_print() -> None:
    first = make_recipe(ENCODER, "when-less-is-enough")
    assert (first.selector.depth, first.reconstructor.depth) == (3, 3)
    assert first.selector.stack_ffn == ENCODER.ffn
    assert first.objective.objective == "when-less-is-enough"
    second = make_recipe(ENCODER, "adaptive", sources=("coco", "docvqa", "chartqa"))
    assert (second.selector.depth, second.reconstructor.depth) == (4, 4)
    assert second.reconstructor.image_depth == 2
    o = second.objective
    assert (o.p, o.q, o.a1, o.a2, o.estimator) == (0.6, 0.1, 0.1, 0.1, "gumbel")
    schedule = second.train.resolved(133_000, ENCODER)
    assert schedule.batch == 32
    assert schedule.steps == 415_625
    assert schedule.stage_ends() == [249_375, 332_500, 415_625]
    assert schedule.lr == 1e-5
    assert second.mix == {"coco": 115, "docvqa": 9, "chartqa": 9}
    assert (first.train.epochs, first.train.batch, first.train.stages) == (100, 32, "60+20+20")
    internvl = make_recipe(replace(ENCODER, model_type="internvl_vision"), "adaptive")
    assert internvl.train.lr == 5e-6
    assert internvl.mix is None  # this store has no such sources


@pytest.mark.parametrize("name", ["when-less-is-enough", "adaptive"])
def test_as_printed_is_the_norm_of_raw_features_and_no_choice_of_ours(name: str) -> None:
    read = make_recipe(ENCODER, name)
    printed = make_recipe(ENCODER, f"{name}-printed", sources=("coco", "docvqa", "chartqa"))
    assert printed.selector.normalise == "none"
    assert printed.objective.reduction == "sample-l2"
    assert printed.train.resolved(100, ENCODER).lr == 1e-5
    assert printed.train.clip == 0
    assert printed.mix is not None
    for section in ("selector", "reconstructor", "objective", "train"):
        ours, theirs = (getattr(one, section).to_dict() for one in (read, printed))
        differ = {key for key in ours if ours[key] != theirs[key]}
        assert differ <= {"normalise", "reduction", "clip", "lr", "p"}, section


def test_every_preset_makes_a_recipe_that_goes_through_json() -> None:
    for name in preset_names():
        recipe = make_recipe(ENCODER, name)
        stored = json.loads(json.dumps(recipe.to_dict()))
        assert "run" not in stored  # what is watched decides nothing
        for section in ("selector", "reconstructor", "objective", "train"):
            assert SECTIONS[section].from_dict(stored[section]) == getattr(recipe, section)
        assert load_preset(name).about
    with pytest.raises(UnknownNameError, match="Did you mean 'adaptive'"):
        load_preset("adaptiv")


def test_default_rate_falls_with_the_width() -> None:
    narrow, wide = (replace(ENCODER, width=width) for width in (128, 1024))
    assert TrainConfig().resolved(10, narrow).lr == pytest.approx(1e-3)
    assert TrainConfig().resolved(10, wide).lr == pytest.approx(1.25e-4)


def test_a_varying_grid_takes_no_learned_positions_and_no_picture() -> None:
    varying = replace(ENCODER, grid=None)
    recipe = make_recipe(varying, "adaptive")
    assert recipe.reconstructor.positions == "sincos"
    assert recipe.reconstructor.image_depth == 0
    chosen = make_recipe(varying, "adaptive", ["reconstructor.positions=none"])
    assert chosen.reconstructor.positions == "none"


def test_rate_warms_up_and_falls_to_zero_in_each_stage() -> None:
    config = TrainConfig(steps=100, lr=1.0)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001
    staged = TrainConfig(steps=100, lr=1.0, stages="60+20+20")
    rates = [staged.rate(step) for step in range(100)]
    assert [step for step in range(1, 100) if rates[step] > rates[step - 1]] == [1, 2, 60, 80]
    assert rates[3] == rates[60] == rates[80] == 1.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.stepz=3", "Unknown setting 'train.stepz'. Did you mean 'train.steps'?"),
        ("train.steps", "Expected section.field=value"),
        ("train.steps=many", "Expected `train.steps` as a whole number or None. Got 'many'"),
        ("train.steps=0", "Expected `train.steps` of at least 1"),
        ("train.steps=none", "Expected `steps` or `epochs`. Got neither"),
        ("train.stages=60-40", "Expected `stages` such as 60\\+20\\+20, at most 100. Got '60-40'"),
        ("train.precision=fp8", "Unknown train.precision 'fp8'. Known: bf16, no"),
        ("train.warmup=1", r"Expected `train.warmup` in \[0, 1\)"),
        ("selector.width=-5", "Expected `selector.width` "),
        ("reconstructor.width=-5", "Expected `reconstructor.width` "),
        ("objective.estimator=gumble", "Did you mean 'gumbel'"),
        ("objective.p=2", r"Expected `objective.p` in \[0, 1\]"),
        ("run.on_collapse=cry", "Unknown run.on_collapse 'cry'. Known: log, raise"),
    ],
)
def test_bad_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_recipe(ENCODER, "default", [setting])


def test_a_text_in_a_file_is_no_number_and_not_none() -> None:
    for name, said in (("steps", "7"), ("lr", "none"), ("warmup", "0.1")):
        with pytest.raises(
            ConfigError, match=f"Expected `train.{name}` as a .*number.*Got '{said}'"
        ):
            make_recipe(ENCODER, "default", as_settings({f"train.{name}": said}))


def test_sources_are_drawn_by_weight(tmp_path) -> None:
    folders = [toy_store(tmp_path / n, crops, source=n) for n, crops in (("a", 40), ("b", 8))]
    store = FeatureStore(folders)
    generator = torch.Generator().manual_seed(0)
    drawn = Rows.of(store, {"a": 1, "b": 3}).draw(4000, generator)
    assert float((drawn >= 40).float().mean()) == pytest.approx(0.75, abs=0.03)
    alike = Rows.of(store).draw(4800, generator)
    assert float((alike >= 40).float().mean()) == pytest.approx(1 / 6, abs=0.03)
    only_b = Rows.of(store, {"b": 1}).draw(100, generator)
    assert int(only_b.min()) >= 40
    with pytest.raises(UnknownNameError, match="source of features 'c'"):
        Rows.of(store, {"c": 1})
    with pytest.raises(ConfigError, match=r"weight of 0 or more for 'a'\. Got -1"):
        Rows.of(store, {"a": -1})
    with pytest.raises(ConfigError, match="Expected a weight above 0"):
        Rows.of(store, {"a": 0})


def test_processes_share_the_batch_of_one(tmp_path) -> None:
    store = FeatureStore([toy_store(tmp_path / "store")])
    rows = Rows.of(store)
    whole = Batches(store, rows, 8, seed=3).step(5)[0].batch.features
    shared = [
        part.batch.features
        for rank in range(2)
        for part in Batches(store, rows, 8, seed=3, accumulate=2, rank=rank, world=2).step(5)
    ]
    together = torch.cat([shared[0], shared[2], shared[1], shared[3]])  # rank 0: parts 0 and 2
    torch.testing.assert_close(together, whole, rtol=0, atol=0)
    ahead = [part[0].batch.features for part in Batches(store, rows, 8, seed=3).steps(4, 7)]
    assert torch.equal(ahead[1], whole)


@pytest.mark.parametrize(("kept", "state"), [(1.0, "ones"), (0.0, "zeros")])
def test_collapse_is_noticed(kept: float, state: str) -> None:
    watch = CollapseWatch(3)
    watch.see(0.5)
    watch.see(kept)
    watch.see(kept)
    with pytest.raises(TrainingError, match=f"all {state} for 3 steps"):
        watch.see(kept)


def test_divergence_is_noticed() -> None:
    watch = DivergenceWatch(patience=4)
    for step in range(20):
        watch.see(2.0 if step % 4 == 0 else 0.8, step)  # noise is no divergence

    def run_away() -> None:
        for step in range(20, 60):
            watch.see(1.2 ** (step - 19), step)

    with pytest.raises(TrainingError, match=r"Expected a loss that falls.*lower train\.lr"):
        run_away()
    with pytest.raises(TrainingError, match=r"Expected a finite loss\. Got nan at step 3"):
        watch.see(float("nan"), 3)


def test_trackers_are_known_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        check_tracker("tensorbord")
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(
        MissingPackageError, match=r"package of the tracker 'wandb'.*pip install wandb"
    ):
        check_tracker("wandb")
