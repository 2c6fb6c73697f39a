"""`tokensieve train selector`: presets, settings, what it says, and the weights it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokensieve.nn.selector import Selector
from toys.train_toys import toy, toy_store

QUICK = (
    "--set", "selector.depth=1", "--set", "reconstructor.depth=1", "--set", "train.batch=4",
    "--set", "run.log_every=1",
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return toy_store(tmp_path / "store", pixels=True)


@pytest.mark.parametrize("preset", ["default", "when-less-is-enough", "adaptive"])
def test_every_preset_leaves_weights_that_load(preset, run, store, tmp_path):
    code, out, err = run(
        "train", "selector", "--features", store, "--out", tmp_path / "run", "--preset", preset,
        "--steps", 3, *QUICK, "--seed", 4, "--holdout", 0.2,
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    selector = Selector.from_pretrained(told["selector"])
    assert selector.scores(toy(2)[0]).shape == (2, 25)
    assert "step 3 of 3: loss" in err
    assert "lost at keep 0.2: selector" in err
    log = [json.loads(line) for line in Path(told["log"]).read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2]
    stored = json.loads((tmp_path / "run" / "train.json").read_text())
    assert stored["seed"] == 4
    assert (tmp_path / "run" / "samples").exists() is (preset == "adaptive")
    if preset == "default":
        assert len(selector.config.thresholds) > 0  # ready for adaptive counts


def test_a_second_run_goes_on_and_says_the_same(run, store, tmp_path):
    command = ("train", "selector", "--features", store, "--out", tmp_path / "run", "--steps", 3)
    assert run(*command, *QUICK)[0] == 0
    before = (tmp_path / "run" / "selector" / "model.safetensors").read_bytes()
    code, _, err = run(*command, *QUICK)
    assert code == 0
    assert "step 1 of 3" not in err  # nothing was left to do
    assert (tmp_path / "run" / "selector" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "adaptiv"), "Did you mean 'adaptive'"),
        (("--set", "train.stepz=3"), "Did you mean 'train.steps'"),
        (("--set", "train.lr"), "Expected section.field=value"),
        (("--steps", "0"), "Expected `train.steps` of at least 1"),
        (("--precision", "fp8"), "Unknown train.precision 'fp8'. Known: bf16, no"),
        (("--mix", "coco"), "Expected --mix SOURCE=WEIGHT"),
        (("--mix", "coco=1"), "Unknown source of features 'coco'. Known: memory"),
        (("--tracker", "tensorbord"), "Did you mean 'tensorboard'"),
        (("--holdout", "1"), "Expected `holdout` in [0, 1)"),
        (("--config", "no.json"), "Expected settings as JSON in no.json"),
        (("--accumulate", "3"), "Set train.batch to a multiple of 3"),
        (("--validation", "nowhere"), "nowhere"),
        (("--seed", "-1"), "Expected `seed` of at least 0. Got -1"),
        (("--set", f"selector.depth={10**30}"), "Expected `selector.depth` of at most 256"),
        (("--set", "selector.heads=0"), "Expected `selector.heads` of at least 1"),
        (("--set", "train.stages=inf"), "Expected `stages` such as 60+20+20"),
        (("--set", "train.batch=999999999"), "Expected `train.batch` of at most 1048576"),
        (("--set", "selector.width=65536", "--set", "selector.depth=256"), "Set a smaller depth"),
        (
            ("--set", "selector.heads=true"),
            "Expected `selector.heads` as a whole number or None",
        ),
        (("--set", "train.lr=nan"), "Expected `train.lr` above 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, run, store, tmp_path):
    code, _, err = run(
        "train", "selector", "--features", store, "--out", tmp_path / "run", *arguments
    )
    assert code == 2
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("tokensieve:")]) == 1
    assert not (tmp_path / "run").exists()


def test_a_config_file_and_a_mix(run, store, tmp_path):
    other = toy_store(tmp_path / "other", crops=8, pixels=True, source="pages")
    (tmp_path / "c.json").write_text('{"train.steps": 2, "selector.depth": 1}')
    code, _, err = run(
        "train", "selector", "--features", store, "--features", other, "--out", tmp_path / "run",
        "--config", tmp_path / "c.json", "--mix", "memory=1", "--mix", "pages=3",
        "--set", "reconstructor.depth=1", "--validation", other,
    )  # fmt: skip
    assert code == 0, err
    stored = json.loads((tmp_path / "run" / "train.json").read_text())
    assert stored["recipe"]["mix"] == {"memory": 1.0, "pages": 3.0}
    assert stored["recipe"]["train"]["steps"] == 2
    validation = (tmp_path / "run" / "validation.jsonl").read_text()
    assert json.loads(validation)["crops"] == 8


def test_settings_are_listed_with_what_they_do(run, tmp_path):
    code, out, _ = run("train", "selector", "--list-settings")
    assert code == 0
    assert "train.batch=16  Crops of an optimiser step, over all processes." in out


def test_tensorboard_takes_the_losses(run, store, tmp_path):
    pytest.importorskip("tensorboard")
    code, _, err = run(
        "train", "selector", "--features", store, "--out", tmp_path / "run", "--steps", 2, *QUICK,
        "--tracker", "tensorboard",
    )  # fmt: skip
    assert code == 0, err
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(store, tmp_path):
    """Gloo on the CPU: each reads its half of every batch, and gradients are averaged."""
    settings = [
        "train", "selector", "--features", str(store), "--steps", "3", *QUICK,
        "--preset", "when-less-is-enough", "--set", "objective.estimator=straight-through",
        "--set", "objective.budget=picture", "--set", "train.lr=0.001", "--holdout", "0",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    for name, processes in (("one", 1), ("two", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
             str(processes), "-m", "tokensieve", *settings, "--out", str(tmp_path / name)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count(f"{processes} process(es) on cpu") == 1  # only the first speaks
    one, two = (Selector.from_pretrained(tmp_path / n / "selector") for n in ("one", "two"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    logs = [(tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("one", "two")]
    assert len(logs[1]) == 3  # written once, by the first process
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
