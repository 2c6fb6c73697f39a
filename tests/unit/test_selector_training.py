"""Training: it learns, repeats itself, resumes exactly, and notices when it goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokensieve.data.features import FeatureBatch, FeatureStore, write_store
from tokensieve.errors import (
    ConfigError,
    TrainingError,
    UnsupportedError,
)
from tokensieve.nn.selector import Selector
from tokensieve.train.selector import (
    CollapseWatch,
    TrainConfig,
    main,
    make_recipe,
    train_selector,
)
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (5, 5))
SMALL = ("selector.depth=1", "reconstructor.depth=1", "train.batch=4", "train.normaliser_crops=16")


def toy(crops: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the tokens are near copies of one of two prototypes, half are news."""
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(2, 16, generator=torch.Generator().manual_seed(99))
    base = prototypes[torch.randint(2, (crops, 1), generator=g)]
    copies = base + 0.05 * torch.randn(crops, 25, 16, generator=g)
    novel = torch.rand(crops, 25, generator=g) < 0.5
    return torch.where(novel[..., None], torch.randn(crops, 25, 16, generator=g), copies), novel


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write_store(tmp_path / "toy", toy(64)[0], ENCODER)


def recipe(features: FeatureStore, *settings: str):
    return make_recipe(features, [*SMALL, *settings])


FIRST_PAPER = [
    "objective.objective=when-less-is-enough", "objective.estimator=gumbel", "objective.p=0.5",
    "objective.reduction=mse",
]  # fmt: skip


@pytest.mark.parametrize("objective", [[], FIRST_PAPER], ids=["default", "first-paper"])
def test_learns_to_keep_what_cannot_be_told(
    objective: list[str], stored: Path, tmp_path: Path
) -> None:
    features = FeatureStore([stored])
    settings = ["train.steps=80", "train.lr=0.01", "train.batch=8", *objective]
    model = train_selector(features, recipe(features, *settings), tmp_path / "run")
    fresh, novel = toy(32, seed=1)
    with torch.no_grad():
        scores = model.selector.scores(fresh)
    auc = (scores[novel][:, None] > scores[~novel][None]).float().mean()
    assert float(auc) > 0.9
    saved = Selector.from_pretrained(tmp_path / "run" / "selector")
    assert torch.equal(saved.scores(fresh), model.selector.scores(fresh))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]


def test_resumed_run_equals_the_uninterrupted_one(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = FeatureStore([stored])
    plan = recipe(features, "train.steps=6", "train.save_every=3")
    whole = train_selector(features, plan, tmp_path / "whole", seed=5)

    import tokensieve.train.selector as module

    step = module.train_step

    def interrupted(*args):
        if args[-1] == 4:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(module, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_selector(features, plan, tmp_path / "parts", seed=5)
    monkeypatch.setattr(module, "train_step", step)
    resumed = train_selector(features, plan, tmp_path / "parts", seed=5)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigError, match="to be of this recipe, seed and data"):
        train_selector(features, plan, tmp_path / "parts", seed=6)


def test_global_generator_is_left_alone(stored: Path, tmp_path: Path) -> None:
    features = FeatureStore([stored])
    before = torch.get_rng_state()
    train_selector(features, recipe(features, "train.steps=1"), tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("kept", "state"), [(1.0, "ones"), (0.0, "zeros")])
def test_collapse_is_noticed(kept: float, state: str) -> None:
    watch = CollapseWatch(3)
    watch.see(0.5)
    watch.see(kept)
    watch.see(kept)
    with pytest.raises(TrainingError, match=f"all {state} for 3 steps"):
        watch.see(kept)


def test_the_literal_loss_collapses_to_all_ones(stored: Path, tmp_path: Path) -> None:
    features = FeatureStore([stored])
    settings = [
        "train.steps=150", "train.lr=0.01", "train.patience=5", "objective.reduction=sample-l2",
        "objective.a1=0", "objective.estimator=straight-through", "objective.objective=plain",
    ]  # fmt: skip
    with pytest.raises(TrainingError, match="all ones"):
        train_selector(features, recipe(features, *settings), tmp_path / "run")


def test_nan_features(
    stored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(self: FeatureStore, rows: torch.Tensor, *, pixels: bool = False) -> FeatureBatch:
        return FeatureBatch(torch.full((len(rows), 25, 16), torch.nan), None, None, None)

    monkeypatch.setattr(FeatureStore, "batch", broken)
    assert main(["--features", str(stored), "--out", str(tmp_path / "o")]) == 2
    assert "NaN" in capsys.readouterr().err


def test_padding_is_refused(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FeatureStore.batch

    def padded(self: FeatureStore, rows: torch.Tensor, *, pixels: bool = False) -> FeatureBatch:
        batch = whole(self, rows)
        return replace(batch, valid=torch.zeros(batch.features.shape[:2], dtype=torch.bool))

    monkeypatch.setattr(FeatureStore, "batch", padded)
    features = FeatureStore([stored])
    with pytest.raises(UnsupportedError, match="Expected crops of equal length"):
        train_selector(features, recipe(features), tmp_path / "run")


def test_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(steps=100, lr=1.0)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.stepz=3", "Unknown setting 'train.stepz'. Did you mean 'train.steps'?"),
        ("train.steps", "Expected section.field=value"),
        ("train.steps=many", "Expected train.steps as int. Got 'many'"),
        ("train.steps=0", "Expected `steps` of at least 1"),
        ("objective.estimator=gumble", "Did you mean 'gumbel'"),
        ("objective.p=2", "Expected `p` in [0, 1]"),
    ],
)
def test_bad_settings_exit_with_2(
    setting: str, message: str, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--features", str(stored), "--out", str(tmp_path / "o"), "--set", setting])
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o").exists()
