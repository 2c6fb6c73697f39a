"""Weights from strangers: config.json and safetensors, checkpoints, released projectors."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fuzz.common import bounded, fuzzed, json_values, one_line, spoilt
from tokensieve.errors import TokensieveError
from tokensieve.hf.fused.released import read_released
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.selector import Selector
from tokensieve.train.checkpoint import load_checkpoint, save_checkpoint
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 8, -1, 2, 2, 16, (2, 3))
CONFIG, WEIGHTS = "config.json", "model.safetensors"
RECORD = {"recipe": {"a": 1}, "seed": 3}


def _selector() -> Selector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Selector(SelectorConfig(ENCODER, depth=1))


def _learner() -> tuple[torch.nn.Linear, torch.optim.Adam]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    return model, optimiser


def _made() -> tuple[dict[str, bytes], dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        _selector().save_pretrained(Path(folder) / "selector")
        save_checkpoint(Path(folder) / "run", 3, *_learner(), RECORD)
        saved = Path(folder) / "selector", Path(folder) / "run" / "checkpoint-000000003"
        selector, checkpoint = ({p.name: p.read_bytes() for p in f.iterdir()} for f in saved)
        return selector, checkpoint


FILES, CHECKPOINT = _made()


def load(folder: Path) -> None:
    """A selector that works, or one line of ours."""
    with bounded():
        try:
            found = Selector.from_pretrained(folder)
        except TokensieveError as error:
            one_line(error)
        else:
            assert all(bool(torch.isfinite(p).all()) for p in found.parameters())


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@fuzzed
@given(file=st.sampled_from([CONFIG, WEIGHTS]), data=st.data())
def test_spoilt_files(file: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = put(Path(folder) / "s", FILES)
        (place / file).write_bytes(data.draw(spoilt([FILES[file], FILES[CONFIG], FILES[WEIGHTS]])))
        load(place)


@fuzzed
@given(name=st.sampled_from(sorted(json.loads(FILES[CONFIG]))), value=json_values())
def test_any_config(name: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = put(Path(folder) / "s", FILES)
        told = json.loads(FILES[CONFIG])
        (place / CONFIG).write_text(json.dumps(told | {name: value}))
        load(place)


@fuzzed
@given(
    at=st.integers(0, 50),
    shape=st.lists(st.integers(0, 9), max_size=3),
    dtype=st.sampled_from(
        [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool,
         torch.float8_e4m3fn, torch.complex64]),
    fill=st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf")]),
    kept=st.booleans(),
)  # fmt: skip
def test_any_tensor(at: int, shape: list[int], dtype: torch.dtype, fill: float, kept: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = put(Path(folder) / "s", FILES)
        tensors = load_file(place / WEIGHTS)
        name = sorted([*tensors, "more"])[at % (len(tensors) + 1)]
        size = list(tensors[name].shape) if kept and name in tensors else shape
        plain = fill == fill and abs(fill) < 2
        value = torch.full(size, fill if plain or dtype.is_floating_point else 0.0)
        save_file({**tensors, name: value.to(dtype)}, place / WEIGHTS)
        load(place)


@fuzzed
@given(file=st.sampled_from(sorted(CHECKPOINT)), data=st.data())
def test_spoilt_checkpoints(file: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = put(Path(folder) / "checkpoint-000000003", CHECKPOINT)
        (place / file).write_bytes(data.draw(spoilt([CHECKPOINT[file], *CHECKPOINT.values()])))
        model, optimiser = _learner()
        with bounded():
            try:
                step = load_checkpoint(Path(folder), model, optimiser, RECORD)
            except TokensieveError as error:
                one_line(error)
                return
        assert step >= 0
        model(torch.ones(1, 2)).sum().backward()
        optimiser.step()


def _released() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.safetensors"
        save_file({"model.mm_projector.0.weight": torch.zeros(2, 2)}, path)
        return path.read_bytes()


RELEASED = _released()


@fuzzed
@given(data=spoilt([RELEASED, FILES[WEIGHTS]]), config=st.none() | json_values())
def test_spoilt_releases(data: bytes, config: object) -> None:
    with tempfile.TemporaryDirectory() as folder, bounded():
        (Path(folder) / WEIGHTS).write_bytes(data)
        if config is not None:
            (Path(folder) / CONFIG).write_text(json.dumps(config))
        try:
            read_released(folder)
        except TokensieveError as error:
            one_line(error)
