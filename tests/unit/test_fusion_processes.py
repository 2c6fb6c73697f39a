"""Two processes (gloo, CPU) learn what one learns from the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokensieve.train.fusion.run import train_fusion
from unit.fusion_toys import rows_of, toy, toy_recipe, write_rows

TESTS = Path(__file__).parents[1]


@pytest.fixture
def data(tmp_path):
    """Answers of 4 to 30 tokens; 3 of 7 rows are text only."""
    return write_rows(tmp_path, rows_of(4, 3))


def in_two(data, out, *more):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(TESTS / "unit" / "fusion_process.py"), *map(str, data), str(out), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
             "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(out / "model" / "model.safetensors")


def farthest(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_two_processes_learn_what_one_learns(data, tmp_path):
    out = train_fusion(toy(), *data, toy_recipe("stage2", "train.steps=4"), tmp_path / "one")
    one = load_file(out / "model.safetensors")
    two = in_two(data, tmp_path / "two")
    assert farthest(one, two) < 1e-5
    assert farthest(one, start()) > 1e-3  # it did learn
    stored = json.loads((tmp_path / "two" / "train.json").read_text())
    assert (stored["processes"], stored["parts"]) == (2, 2)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    wrong = in_two(data, tmp_path / "wrong", "averaged-by-process")
    assert farthest(one, wrong) > 1e-4  # a mean of the processes' means is another loss


def start():
    """The untrained weights, by the names they have in a file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        toy().model.save_pretrained(folder)
        found = load_file(Path(folder) / "model.safetensors")
        return {name: torch.clone(value) for name, value in found.items()}
