"""The recipe runs from nothing to a model that loads, in a handful of steps, and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tokensieve.errors import ConfigError
from tokensieve.hf.nano import load_nano
from tokensieve.train.nano.__main__ import main
from tokensieve.train.nano.recipe import Recipe

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


def test_unknown_field_of_the_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"encoder": {"widht": 3}}))
    with pytest.raises(ConfigError, match="widht"):
        Recipe.load(path)
