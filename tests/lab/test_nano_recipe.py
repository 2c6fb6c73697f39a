"""The recipe runs from nothing to a model that loads, in a handful of steps, and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lab.nano.__main__ import main
from lab.nano.export import export_control, export_nano
from lab.nano.recipe import LmRecipe, Recipe
from tokensieve.errors import ConfigError, TrainingError
from tokensieve.hf.models.nano import load_nano

Export = Callable[[Recipe, Path, Path], None]
TINY = {
    "shard": 24,
    "train_shards": 1,
    "workers": 1,
    "checkpoint_every": 2,
    "encoder": {"steps": 2, "batch": 4, "layers": 1, "width": 32, "hidden": 32},
    "lm": {
        "layers": 1,
        "width": 32,
        "hidden": 32,
        "guide_layer": 0,
        "phases": [[1, 24, 2], [1, 256, 2]],
        "control_phases": [[1, 256, 2]],
    },
}


def test_all_stages_write_a_model_that_loads_and_resume_adds_nothing(tmp_path: Path) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    target = tmp_path / "nano"
    arguments = ["--out", str(tmp_path / "run"), "--target", str(target), "--config", str(config)]
    main(arguments)
    model, _ = load_nano(path=target)
    steps = json.loads((tmp_path / "run" / "lm-state" / "step.json").read_text())
    assert steps == {"step": 2}
    main(arguments)
    again, _ = load_nano(path=target)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, again.state_dict()[name], rtol=0, atol=0)


@pytest.mark.slow
def test_only_the_control_is_made_on_the_shipped_encoder(tmp_path: Path) -> None:
    config, target = tmp_path / "tiny.json", tmp_path / "nano"
    config.write_text(json.dumps({**TINY, "encoder": {}}))
    arguments = ["--out", str(tmp_path / "run"), "--target", str(target), "--config", str(config)]
    main(["--stage", "only-control", *arguments])
    assert not target.exists()
    weights = load_file(tmp_path / "nano-control" / "reader.safetensors")
    assert weights["lm_head.weight"].shape[1] == TINY["lm"]["width"]


def test_a_guided_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="guide_layer"):
        LmRecipe(layers=2, guide_layer=2)


@pytest.mark.parametrize(("name", "export"), [("lm", export_nano), ("control", export_control)])
def test_half_a_training_is_not_exported(tmp_path: Path, name: str, export: Export) -> None:
    with pytest.raises(TrainingError, match=f"after .* steps. Got 0. Run --stage {name}"):
        export(Recipe(), tmp_path, tmp_path / "nano")
    (tmp_path / f"{name}-state").mkdir()
    (tmp_path / f"{name}-state" / "step.json").write_text('{"step": 250}')
    with pytest.raises(TrainingError, match="Got 250"):
        export(Recipe(), tmp_path, tmp_path / "nano")
    assert not (tmp_path / "nano").exists()


def test_the_control_keeps_away_from_an_encoder_in_training(tmp_path: Path) -> None:
    (tmp_path / "encoder-state").mkdir()
    with pytest.raises(TrainingError, match=r"encoder-state\. Choose another --out"):
        main(["--stage", "shipped-encoder", "--out", str(tmp_path)])


def test_unknown_field_of_the_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"encoder": {"widht": 3}}))
    with pytest.raises(ConfigError, match="widht"):
        Recipe.load(path)
