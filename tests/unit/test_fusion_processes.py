"""Two processes (gloo, CPU) learn what one learns from the same batches, sharded or not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokensieve.hf.load import load_model
from tokensieve.train.fusion.run import Data, train_fusion
from tokensieve.train.fusion.sharding import read_parallel, wrapping
from toys.fusion_toys import rows_of, toy, toy_recipe, write_rows

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Answers of 2 to 30 tokens; 3 of 7 rows are text only, so some parts have no picture."""
    return write_rows(tmp_path_factory.mktemp("rows"), rows_of(4, 3))


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("one")
    train_fusion(toy(), Data(*data), toy_recipe("stage2", "train.steps=4"), out)
    return out


def in_two(data, out, mode):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         # a launcher that gets no CPU for 15 s would take itself for dead
         "--rdzv-conf", "read_timeout=600,keep_alive_max_attempt=1000",
         str(TESTS / "toys" / "fusion_process.py"), *map(str, data), str(out), mode],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
             "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return out


def farthest(one, other):
    a, b = (load_model(str(out / "model")).model.state_dict() for out in (one, other))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("mode", ["plain", "fsdp", "zero2", "zero3"])
@pytest.mark.slow
def test_two_processes_learn_what_one_learns(mode, data, one, tmp_path):
    """ZeRO where DeepSpeed is installed; nothing here has run on a GPU."""
    if mode.startswith("zero"):
        pytest.importorskip("deepspeed")
    two = in_two(data, tmp_path / "two", mode)
    assert farthest(one, two) < 1e-5
    stored = json.loads((two / "train.json").read_text())
    assert (stored["processes"], stored["parts"]) == (2, 2)
    losses = [
        [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (one, two)
    ]
    assert len(losses[1]) == 4  # written once
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_a_mean_of_the_processes_means_is_another_loss(data, one, tmp_path):
    assert farthest(one, in_two(data, tmp_path / "wrong", "averaged-by-process")) > 1e-4


def test_fsdp_shares_the_layers_that_are_there():
    model = toy().model
    shared = wrapping(read_parallel("fsdp"), model)
    layers = shared["fsdp_config"]["transformer_layer_cls_to_wrap"]
    assert layers == ["CLIPEncoderLayer", "LlamaDecoderLayer"]
    assert set(layers) <= {type(module).__name__ for module in model.modules()}
    own = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["X"]}}
    assert wrapping(own, model) == own
    assert wrapping({}, model) == {}
