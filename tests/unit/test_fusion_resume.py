"""`train_fusion` cut off at any point, gone on with, or asked for another training."""

import json
import multiprocessing
import os
import pickle
import shutil
from functools import cache

import pytest
import torch

from tokensieve.errors import ConfigError, WeightsError
from tokensieve.train.fusion.model import projector_of
from tokensieve.train.fusion.run import Data, train_fusion
from tokensieve.train.fusion.trainer import FusionTrainer
from toys.fusion_toys import killed, rows_of, toy, toy_recipe, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows and pictures that no test may change."""
    return write_rows(tmp_path_factory.mktemp("rows"), rows_of())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What a training never cut off leaves, by its preset; made once, not to be changed."""

    @cache
    def make(preset):
        out = tmp_path_factory.mktemp(preset) / "whole"
        train_fusion(toy(), Data(*data), toy_recipe(preset), out)
        return out

    return make


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of the folder of a finished training."""
    return shutil.copytree(whole("stage2"), tmp_path / "o")


def run_and_die(*arguments):
    """`killed` in a process of its own; whether it died of the signal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toys.fusion_toys", "tokensieve.train.fusion.export"])
    process = context.Process(target=killed, args=arguments)
    process.start()
    process.join(100)
    return process.exitcode == -9


# N.M: before part M of step N; from step 2.1 on in a second pass over the 10 rows
STEPS = ("step1.1", "step2.0", "step2.1", "step4.1")
FILES = (
    "while a checkpoint is written", "while the second checkpoint is written",
    "before a checkpoint is marked", "while an old checkpoint is removed",
    "before the model is written", "before the model has its name",
)  # fmt: skip


@pytest.mark.parametrize(("preset", "points"), [("stage2-lora", STEPS), ("stage2", FILES)])
@pytest.mark.slow
def test_a_run_killed_anywhere_ends_with_the_same_bytes(preset, points, data, whole, tmp_path):
    wanted = {
        name: (whole(preset) / name).read_bytes()
        for name in ("model/model.safetensors", "projector.safetensors", "model/config.json")
    }
    for point in points:
        out = tmp_path / point.replace(" ", "-")
        assert run_and_die(point, preset, *data, out), point
        assert not (out / "model").exists()
        train_fusion(toy(), Data(*data), toy_recipe(preset), out)
        for name, content in wanted.items():
            assert (out / name).read_bytes() == content, (point, name)
        lines = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
        assert lines == [0, 1, 2, 3, 4], point


@pytest.mark.slow
def test_a_disk_that_fills_up_at_a_checkpoint(data, whole, tmp_path, monkeypatch):
    """The one before stays and the run goes on from it; what torch raises is no OSError."""
    out, wanted = tmp_path / "o", whole("stage2-lora")
    known, count = torch.save, [0]

    def full(*given, **named):
        count[0] += 1
        if count[0] > 3:  # in the second checkpoint
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        return known(*given, **named)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        ConfigError, match=r"^Expected room and rights to write .*checkpoint-4\. Got"
    ):
        train_fusion(toy(), Data(*data), toy_recipe("stage2-lora"), out)
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    train_fusion(toy(), Data(*data), toy_recipe("stage2-lora"), out)
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (wanted / name).read_bytes()


def test_a_run_killed_twice(data, whole, tmp_path):
    out, wanted = tmp_path / "o", whole("stage2-lora")
    assert run_and_die("step2.1", "stage2-lora", *data, out)
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-2"]
    assert run_and_die("step1.0", "stage2-lora", *data, out)  # its second step: the fourth
    train_fusion(toy(), Data(*data), toy_recipe("stage2-lora"), out)
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (wanted / name).read_bytes()


def test_a_finished_run_has_nothing_to_do(data, finished, monkeypatch):
    monkeypatch.setattr(FusionTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    made = train_fusion(toy(), Data(*data), toy_recipe("stage2"), finished)
    assert made == finished / "model"


@pytest.mark.slow
def test_a_model_of_an_earlier_training_is_not_taken_for_this_ones(data, tmp_path):
    """The message of a refusal says to delete the checkpoint; the next run may be cut off, too."""
    out = tmp_path / "o"
    made = train_fusion(toy(), Data(*data), toy_recipe("stage2"), out, seed=1)
    old = (made / "model.safetensors").read_bytes()
    shutil.rmtree(out / "checkpoint-5")
    assert run_and_die("before the model is written", "stage2", *data, out)
    assert (made / "model.safetensors").read_bytes() == old
    train_fusion(toy(), Data(*data), toy_recipe("stage2"), out)
    assert (made / "model.safetensors").read_bytes() != old
    assert json.loads((out / "train.json").read_text())["finished"]


@pytest.mark.parametrize(
    ("preset", "settings", "seed", "what"),
    [
        ("stage2", ["train.lr=0.004"], 0, "recipe.train.lr"),
        ("stage2", [], 1, "seed"),
        ("stage2", ["train.steps=6"], 0, "recipe.train.steps"),
        ("stage2", ["train.per_device=4"], 0, "parts"),
        ("stage2-lora", [], 0, "recipe.lora"),
    ],
)
def test_another_training_is_refused(preset, settings, seed, what, data, finished):
    recipe = toy_recipe(preset, *settings)
    before = (finished / "train.json").read_bytes()
    loaded = toy()
    with pytest.raises(ConfigError, match=f"It differs in .*{what}"):
        train_fusion(loaded, Data(*data), recipe, finished, seed)
    assert (finished / "train.json").read_bytes() == before


def test_another_number_or_kind_of_processes_is_refused(data, finished, monkeypatch):
    out, recipe = finished, toy_recipe("stage2")
    with pytest.raises(ConfigError, match=r"It differs in parallel\.fsdp"):
        train_fusion(toy(), Data(*data), recipe, out, parallel={"fsdp": True})
    monkeypatch.setenv("WORLD_SIZE", "2")  # as many parts of a batch as before
    with pytest.raises(ConfigError, match=r"It differs in processes .1, not 2"):
        train_fusion(toy(), Data(*data), recipe, out)


def test_other_data_or_weights_are_refused(data, finished, tmp_path):
    other = toy()
    with torch.no_grad():
        projector_of(other.model).spatial.mlp[0].bias += 1
    with pytest.raises(ConfigError, match=r"weights\.projector"):
        train_fusion(other, Data(*data), toy_recipe("stage2"), finished)
    rows = tmp_path / data[0].name
    rows.write_text(data[0].read_text().replace("Sure?", "Really?"))
    with pytest.raises(ConfigError, match=r"data\.content"):
        train_fusion(toy(), Data(rows, data[1]), toy_recipe("stage2"), finished)


@pytest.mark.slow
def test_a_checkpoint_that_would_run_code_is_refused(data, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("rng_state.pth", "optimizer.pt", "scheduler.pt"):
        out = tmp_path / name
        assert run_and_die("step2.1", "stage2", *data, out)
        torch.save({"python": Evil(), "state": Evil()}, out / "checkpoint-2" / name)
        with pytest.raises(WeightsError, match="would run code when read; it was not"):
            train_fusion(toy(), Data(*data), toy_recipe("stage2"), out)
        assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(Evil())) is None  # the trap works
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_unreadable_pictures_are_still_counted_after_a_kill(tmp_path):
    data = write_rows(tmp_path, rows_of())
    (data[1] / "3.png").write_bytes(b"no picture")
    out, whole = tmp_path / "o", tmp_path / "whole"
    train_fusion(toy(), Data(*data), toy_recipe("stage2"), whole, skip_bad_rows=True)
    assert run_and_die("skip step3.1", "stage2", *data, out)
    train_fusion(toy(), Data(*data), toy_recipe("stage2"), out, skip_bad_rows=True)
    found = [json.loads((f / "train.json").read_text())["skipped"] for f in (out, whole)]
    assert found == [{"picture unreadable": 1}] * 2
