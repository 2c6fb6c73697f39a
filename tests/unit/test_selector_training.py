"""Training: it learns, repeats itself, resumes exactly, and notices when it goes wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokensieve.data.store.features import FeatureStore, write_store
from tokensieve.errors import ConfigError, EncoderMismatchError, NonFiniteError, TrainingError
from tokensieve.nn.reconstructor import ImageReconstructor
from tokensieve.nn.selector import Selector
from tokensieve.train import checkpoint
from tokensieve.train.batches import Rows
from tokensieve.train.calibration.selector import calibration_rows
from tokensieve.train.selector import loop
from tokensieve.train.selector.run import held_out, train_selector
from toys.train_toys import ENCODER, small, toy, toy_store


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore([toy_store(tmp_path / "store")])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(path: Path) -> list[tuple]:
    """What must not depend on when a run was cut off."""
    return [(v["step"], v["loss"], v["kept"]) for v in lines(path / "log.jsonl")]


FIRST_PAPER = [
    "objective.objective=when-less-is-enough", "objective.estimator=gumbel", "objective.p=0.5",
    "objective.reduction=mse",
]  # fmt: skip


@pytest.mark.parametrize("objective", [[], FIRST_PAPER], ids=["default", "first-paper"])
def test_learns_to_keep_what_cannot_be_told(
    objective: list[str], store: FeatureStore, tmp_path: Path
) -> None:
    settings = ["train.steps=80", "train.lr=0.01", "train.batch=8", *objective]
    model = train_selector(store, small(store, *settings), tmp_path / "run", holdout=0.1)
    fresh, novel = toy(32, seed=1)
    with torch.no_grad():
        scores = model.selector.scores(fresh)
    auc = (scores[novel][:, None] > scores[~novel][None]).float().mean()
    assert float(auc) > 0.9
    saved = Selector.from_pretrained(tmp_path / "run" / "selector")
    assert torch.equal(saved.scores(fresh), model.selector.scores(fresh))
    by = saved.config.trained_by
    assert by is not None
    assert by.objective == ("when-less-is-enough" if objective else "surprise")
    assert (by.preset, by.steps, by.crops, by.seed) == ("default", 80, 58, 0)
    assert "train.lr=0.01" in by.settings
    assert not [name for name in by.settings if name.startswith("run.")]  # decides nothing
    log = lines(tmp_path / "run" / "log.jsonl")
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]
    measured = lines(tmp_path / "run" / "validation.jsonl")[-1]
    lost = measured["lost"]["0.4"]
    assert lost["selector"] < lost["random"]
    assert lost["selector"] < lost["stride"]
    assert measured["crops"] == 6  # a tenth of 64 pictures
    assert ("histogram" in measured) is bool(objective)  # expected errors have no mask
    assert sum(measured.get("histogram", [6])) == 6


@pytest.mark.parametrize("broken", [False, True], ids=["", "noise-from-elsewhere"])
def test_resumed_run_equals_the_uninterrupted_one(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    plan = small(store, "train.steps=6", "run.save_every=3", "run.log_every=1")
    whole = train_selector(store, plan, tmp_path / "whole", seed=5)
    step = loop.Run.step

    def interrupted(self, number, parts):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, number, parts)

    monkeypatch.setattr(loop.Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_selector(store, plan, tmp_path / "parts", seed=5)
    monkeypatch.setattr(loop.Run, "step", step)
    if broken:  # a training whose chance does not come from (seed, step): the check must see it
        monkeypatch.setattr(
            "tokensieve.train.batches.generator_of", lambda *_: torch.Generator().manual_seed(1)
        )
    resumed = train_selector(store, plan, tmp_path / "parts", seed=5)
    same = all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
    assert same is not broken
    assert (losses(tmp_path / "whole") == losses(tmp_path / "parts")) is not broken


@pytest.mark.parametrize(
    ("settings", "seed", "named"),
    [([], 6, "seed"), (["train.lr=0.5"], 5, "train.lr"), (["selector.trust=9"], 5, "trust")],
)
def test_a_checkpoint_of_another_training_is_refused(
    settings: list[str], seed: int, named: str, store: FeatureStore, tmp_path: Path
) -> None:
    train_selector(store, small(store, "train.steps=2"), tmp_path / "run", seed=5)
    before = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(ConfigError, match=rf"recipe, seed and data\. It differs in .*{named}"):
        train_selector(store, small(store, "train.steps=2", *settings), tmp_path / "run", seed=seed)
    other = FeatureStore([write_store(tmp_path / "other", toy(64, seed=3)[0], ENCODER)])
    with pytest.raises(ConfigError, match="It differs in features"):
        train_selector(other, small(other, "train.steps=2"), tmp_path / "run", seed=5)
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


@pytest.mark.slow
def test_killed_twenty_times_nothing_is_lost(store: FeatureStore, tmp_path: Path) -> None:
    plan = small(store, "train.steps=100", "run.save_every=2", "run.log_every=1")
    train_selector(store, plan, tmp_path / "whole", seed=1)
    chance, log = random.Random(0), tmp_path / "parts" / "log.jsonl"
    for _ in range(20):
        goal = chance.randrange(8)
        child = os.fork()
        if child == 0:  # pragma: no cover
            try:
                torch.set_num_threads(1)
                train_selector(store, plan, tmp_path / "parts", seed=1)
            finally:
                os._exit(0)
        seen = log.read_text() if log.exists() else ""
        while goal > 0:  # so many more lines than before, however slow the machine
            time.sleep(0.002)
            now = log.read_text() if log.exists() else ""
            goal -= now != seen
            seen = now
        time.sleep(chance.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])  # it had not ended by itself
    train_selector(store, plan, tmp_path / "parts", seed=1)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for name in ("selector", "reconstructor"):
        whole, parts = (tmp_path / run / name / "model.safetensors" for run in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()
    left = {p.name for p in (tmp_path / "parts").iterdir() if not p.name.startswith(".")}
    assert left == {p.name for p in (tmp_path / "whole").iterdir()}


def test_a_removal_cut_short_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch) -> None:
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(model.parameters())
    checkpoint.save_checkpoint(tmp_path, 1, model, optimiser, {})

    def cut(folder: Path, **_) -> None:
        if (state := folder / "state.json").exists():
            state.unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(tmp_path, 2, model, optimiser, {})
    named = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert named == ["checkpoint-000000002"]


def test_a_half_written_line_and_lines_to_be_done_again_are_dropped(
    store: FeatureStore, tmp_path: Path
) -> None:
    from tokensieve.train.journal import Journal

    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    Journal(path, first=3).close()
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_parts_of_a_batch_add_up(store: FeatureStore, tmp_path: Path) -> None:
    """Without noise and with a mean over equal parts, accumulating changes nothing but rounding."""
    settings = [
        "train.steps=3", "objective.objective=when-less-is-enough",
        "objective.estimator=straight-through", "objective.budget=picture", "run.log_every=1",
    ]  # fmt: skip
    whole = train_selector(store, small(store, *settings), tmp_path / "a")
    parts = train_selector(store, small(store, *settings, "train.accumulate=4"), tmp_path / "b")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"a batch that 1 process\(es\) x 3 part\(s\) divide"):
        train_selector(store, small(store, "train.accumulate=3"), tmp_path / "c")


def test_bf16_learns_in_mixed_precision(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    linear = torch.nn.Linear.forward

    def spy(self, x):
        out = linear(self, x)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", spy)
    plan = small(store, "train.steps=30", "train.lr=0.01", "train.precision=bf16")
    model = train_selector(store, plan, tmp_path / "run")
    assert torch.bfloat16 in seen
    assert all(p.dtype is torch.float32 for p in model.parameters())
    log = lines(tmp_path / "run" / "log.jsonl")
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]


def test_image_reconstructor_draws_samples_and_is_saved(tmp_path: Path) -> None:
    store = FeatureStore([toy_store(tmp_path / "store", crops=24, pixels=True)])
    plan = small(
        store, "train.steps=4", "run.validate_every=2", "reconstructor.depth=1",
        "selector.depth=1", "train.epochs=1", preset="adaptive",
    )  # fmt: skip
    train_selector(store, plan, tmp_path / "run", holdout=0.2)
    from PIL import Image

    sheets = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert sheets == ["step-000002.png", "step-000004.png"]
    with Image.open(tmp_path / "run" / "samples" / sheets[0]) as sheet:
        assert sheet.width > 4 * 224  # picture, all, selector's, random
    image = ImageReconstructor.from_pretrained(tmp_path / "run" / "image")
    assert image.config.patch == 4
    assert "image" in lines(tmp_path / "run" / "validation.jsonl")[-1]


def test_image_term_without_pixels_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Got no pixels\. Extract with --pixels"):
        train_selector(store, small(store, preset="adaptive"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_global_generator_is_left_alone(store: FeatureStore, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_selector(store, small(store, "train.steps=1"), tmp_path / "run", holdout=0.1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_literal_loss_collapses_to_all_ones(store: FeatureStore, tmp_path: Path) -> None:
    settings = [
        "train.steps=150", "train.lr=0.01", "run.patience=5", "objective.reduction=sample-l2",
        "objective.a1=0", "objective.estimator=straight-through", "objective.objective=plain",
    ]  # fmt: skip
    with pytest.raises(TrainingError, match="all ones"):
        train_selector(store, small(store, *settings), tmp_path / "run")


def test_nan_features_are_refused(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = toy(8)[0]
    broken[3, 4, 5] = float("nan")
    with pytest.raises(NonFiniteError, match="Expected finite features"):
        write_store(tmp_path / "f", broken, ENCODER)
    read = FeatureStore.batch
    monkeypatch.setattr(  # a damaged disk
        FeatureStore, "batch", lambda *a, **k: replace(b := read(*a, **k), features=b.features / 0)
    )
    with pytest.raises(NonFiniteError, match="finite features to train on"):
        train_selector(store, small(store), tmp_path / "o")


def test_a_share_of_the_pictures_is_held_out(store: FeatureStore, tmp_path: Path) -> None:
    assert held_out(store, 0.25).nonzero()[:, 0].tolist() == list(range(0, 64, 4))
    assert [int(held_out(store, s).sum()) for s in (0.0, 0.001, 0.3, 0.9)] == [0, 1, 19, 58]
    with pytest.raises(ConfigError, match=r"`holdout` in \[0, 1\)\. Got 1"):
        held_out(store, 1.0)
    store.group_N = torch.arange(64) // 8  # as of eight videos
    assert held_out(store, 0.25).nonzero()[:, 0].tolist() == [*range(8), *range(32, 40)]
    single = FeatureStore([toy_store(tmp_path / "single", crops=1)])
    with pytest.raises(ConfigError, match="Expected at least two pictures"):
        held_out(single, 0.1)


@pytest.mark.parametrize("validated", [False, True])
def test_held_out_pictures_are_not_trained_on(
    validated: bool, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, read = set(), FeatureStore.batch
    monkeypatch.setattr(loop.Run, "validate", lambda *_: None)

    def spy(self, rows, *, pixels=False):
        drawn.update(rows.tolist())
        return read(self, rows, pixels=pixels)

    monkeypatch.setattr(FeatureStore, "batch", spy)
    held = set(held_out(store, 0.25).nonzero()[:, 0].tolist())
    other = FeatureStore([toy_store(tmp_path / "other", crops=8)]) if validated else None
    plan = small(store, "train.steps=60", "train.batch=8")
    train_selector(store, plan, tmp_path / "run", holdout=0.25, validation=other)
    assert (drawn & held == set()) is not validated  # with a store of its own all are trained on
    assert len(drawn) > 40


def test_a_validation_store_must_fit(store: FeatureStore, tmp_path: Path) -> None:
    encoder = replace(ENCODER, depth=7)
    other = FeatureStore([write_store(tmp_path / "other", toy(8)[0], encoder)])
    with pytest.raises(EncoderMismatchError, match="validation features of the encoder"):
        train_selector(store, small(store), tmp_path / "run", validation=other)
    drawn = FeatureStore([toy_store(tmp_path / "drawn", pixels=True)])
    plan = small(drawn, "train.epochs=1", preset="adaptive")
    with pytest.raises(ConfigError, match="Expected pixels in the validation store"):
        train_selector(drawn, plan, tmp_path / "run", validation=store)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Expected a folder to write to"):
        train_selector(store, small(store), tmp_path / "file")


def test_a_run_is_bound_to_what_it_is_trained_on(store: FeatureStore, tmp_path: Path) -> None:
    plan = small(store, "train.steps=2")
    train_selector(store, plan, tmp_path / "run", validation=store)
    with pytest.raises(ConfigError, match="It differs in trained_on"):
        train_selector(store, plan, tmp_path / "run", holdout=0.1)
    with pytest.raises(ConfigError, match="It differs in parts"):
        train_selector(store, small(store, "train.steps=2", "train.accumulate=2"), tmp_path / "run")


def test_thresholds_are_measured_on_crops_of_every_number(tmp_path: Path) -> None:
    store = FeatureStore([toy_store(tmp_path / "store", crops=60)])
    store.picture_N = torch.arange(60) // 5  # as of 12 pictures of 5 crops
    generator = torch.Generator().manual_seed(0)
    chosen = calibration_rows(store, Rows.of(store), 100, generator)
    assert chosen.tolist() == [5 * i + i % 5 for i in range(12)]
    few = calibration_rows(store, Rows.of(store, keep_N=store.picture_N % 2 == 0), 3, generator)
    assert set((few // 5).tolist()) <= set(range(0, 12, 2))
    assert len(few) == 3


def test_crops_that_are_all_padded_are_trained_on_without_thresholds(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, valid = FeatureStore.batch, torch.arange(25) < 20
    monkeypatch.setattr(
        FeatureStore, "batch",
        lambda *a, **k: replace(b := read(*a, **k), valid=valid.expand(len(b.features), 25)),
    )  # fmt: skip
    train_selector(store, small(store, "train.steps=1"), tmp_path / "run")
    assert Selector.from_pretrained(tmp_path / "run" / "selector").config.thresholds == ()
