"""A folder that a user names: ours, new or empty, and one run at a time in it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from lab.nano.__main__ import main as nano
from tokensieve.data.extraction.extract import extract
from tokensieve.data.llava.write import write_llava
from tokensieve.data.sources import open_source
from tokensieve.data.store.features import FeatureStore, write_store
from tokensieve.data.synth.shipped import make as make_shipped
from tokensieve.errors import ConfigError
from tokensieve.evaluate import records
from tokensieve.folders import LOCK, MARK, FolderNote, Kind, claimed
from tokensieve.hf.fused.convert import convert
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.models.nano import load_nano
from tokensieve.hf.models.random import save_random_model
from tokensieve.nn.config import SelectorConfig
from tokensieve.nn.selector import Selector
from tokensieve.train.calibration.selector import main as calibrate
from tokensieve.train.fusion.run import Data, train_fusion
from tokensieve.train.selector.run import train_selector
from toys.extract_tiny import SMALL
from toys.fusion_toys import rows_of, toy_recipe, write_rows
from toys.fusion_toys import toy as toy_fusion
from toys.quick import few
from toys.train_toys import ENCODER, small, toy, toy_store

KIND = Kind("the work of a test")


def everything(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def mine(tmp_path):
    """Somebody's own folder: a checkpoint of another trainer, a log, a config, a picture."""
    folder = tmp_path / "mine"
    (folder / "checkpoint-7").mkdir(parents=True)
    (folder / "checkpoint-7" / "weights.bin").write_bytes(b"weeks of work")
    (folder / "images").mkdir()
    for name in ("log.jsonl", "config.json", "model.safetensors", "instructions.txt", "a.json"):
        (folder / name).write_text('{"step": 1}\n')
    return folder


def _selector(out: Path) -> None:
    store = FeatureStore([toy_store(out.parent / "store", 8)])
    train_selector(store, small(store, "train.steps=1"), out)


def _fusion(out: Path) -> None:
    data = write_rows(out.parent / "data", rows_of())
    train_fusion(toy_fusion(), Data(*data), toy_recipe("stage2"), out)


def _extract(out: Path) -> None:
    extract(Loaded("nano", *load_nano()), [open_source("synth:scene:1")], out, SMALL)


def _records(out: Path) -> None:
    records.write(out / "a.json", {"config": {}, "identity": "x"})


def _weights(out: Path) -> None:
    Selector(SelectorConfig(ENCODER, depth=1)).save_pretrained(out)


def _calibrate(out: Path) -> None:
    store, weights = toy_store(out.parent / "store", 8), out.parent / "weights"
    _weights(weights)
    code = calibrate(["--selector", str(weights), "--features", str(store), "--out", str(out)])
    if code:
        raise ConfigError("nothing was changed")


WRITERS = {
    "extract": _extract,
    "features of your own": lambda out: write_store(out, toy(4)[0], ENCODER),
    "train selector": _selector,
    "train fusion": _fusion,
    "calibrate": _calibrate,
    "weights": _weights,
    "rows": lambda out: write_llava(out, 1),
    "shipped": make_shipped,
    "records": _records,
    "nano": lambda out: nano(["--stage", "pool", "--out", str(out)]),
    "nano's model": lambda out: nano(
        ["--stage", "export", "--out", str(out.parent / "nano"), "--target", str(out)]
    ),
    "random model": lambda out: save_random_model("siglip", out),
    "convert": lambda out: convert(out.parent / "nothing", out),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_of_others_is_refused_and_left_alone(writer, mine):
    before = everything(mine)
    with pytest.raises(ConfigError, match="nothing was changed") as told:
        WRITERS[writer](mine)
    assert "\n" not in str(told.value)
    assert everything(mine) == before
    assert not list(mine.glob(".*"))


TWICE = ("features of your own", "train selector", "train fusion", "calibrate", "weights", "rows",
         "shipped", "records", "random model")  # fmt: skip


@pytest.mark.parametrize("writer", TWICE)
def test_a_folder_of_ours_is_written_again(writer, tmp_path):
    out = tmp_path / "out"
    WRITERS[writer](out)
    before = everything(out)
    assert not list(out.glob(".*"))
    WRITERS[writer](out)
    assert everything(out).keys() == before.keys()


@pytest.mark.parametrize(
    ("first", "second"),
    [("train fusion", "train selector"), ("train selector", "train fusion"),
     ("features of your own", "train selector"), ("rows", "features of your own"),
     ("train selector", "weights"), ("weights", "train fusion"), ("weights", "records")],
)  # fmt: skip
def test_no_kind_takes_over_another(first, second, tmp_path):
    out = tmp_path / "out"
    WRITERS[first](out)
    before = everything(out)
    if (first, second) == ("train selector", "weights"):  # which writes beside what is there
        WRITERS[second](out)
        assert before.items() <= everything(out).items()
        return
    with pytest.raises(ConfigError, match="Choose another --out"):
        WRITERS[second](out)
    assert everything(out) == before


def _unfinished(out: Path) -> None:
    """As a fusion training that was cut off after its last checkpoint."""
    if (out / "model").exists():
        told = json.loads((out / "train.json").read_text()) | {"finished": False}
        (out / "train.json").write_text(json.dumps(told))


@pytest.mark.parametrize("writer", few(["rows", "train selector", "train fusion"], 2))
def test_folders_of_before_the_marks_go_on_and_say_so(writer, tmp_path):
    out = tmp_path / "out"
    WRITERS[writer](out)
    (out / MARK).unlink()
    _unfinished(out)
    with pytest.warns(FolderNote, match=r"no mark of ours; what lies in it looks like"):
        WRITERS[writer](out)
    assert (out / MARK).is_file()


def test_a_damaged_mark_is_no_mark(tmp_path):
    for text in ("{", "[]", '{"kind": 3', "\udcff"):
        (tmp_path / MARK).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ConfigError, match="that cannot be read"), claimed(tmp_path, KIND):
            pass


def test_a_folder_that_cannot_be_looked_at_or_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / ("a" * 300), tmp_path / "file" / "sub", tmp_path / "file"):
        with pytest.raises(ConfigError, match=r"^Expected .* Got.*$"), claimed(place, KIND):
            pass

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may look everywhere
    with pytest.raises(ConfigError, match="Permission denied"), claimed(tmp_path, KIND):
        pass


def test_a_refusal_later_leaves_no_new_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "new", KIND):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_two_runs_into_one_folder(tmp_path):
    with claimed(tmp_path, KIND) as out:
        (out / "work").write_text("half done")
        told = rf"process {os.getpid()} on .+ is writing into\. Wait for it"
        with pytest.raises(ConfigError, match=told), claimed(tmp_path, KIND):
            pass
        with pytest.raises(ConfigError, match=told), claimed(tmp_path, KIND, share="0-of-2"):
            pass
    with claimed(tmp_path, KIND):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {MARK, "work"}


def test_parts_of_one_run_share_a_folder(tmp_path):
    with claimed(tmp_path, KIND, share="0-of-2"), claimed(tmp_path, KIND, share="1-of-2"):
        for share in (None, "1-of-2"):
            with pytest.raises(ConfigError, match="no other run"), claimed(tmp_path, KIND, share):
                pass
    assert [p.name for p in tmp_path.iterdir()] == [MARK]
    with claimed(tmp_path, KIND):
        pass


@pytest.mark.parametrize("share", [None, "0-of-2"])
def test_the_lock_of_a_killed_run_is_free_at_once(share, tmp_path):
    """With a worker that outlives it, as those of a data loader may by seconds."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with claimed(tmp_path, KIND, share):
                worker = os.fork()
                if worker == 0:
                    time.sleep(60)
                    os._exit(0)
                os.write(writes, str(worker).encode())
                time.sleep(60)
        finally:
            os._exit(1)
    worker = int(os.read(reads, 99))
    try:
        with pytest.raises(ConfigError, match=f"process {child} on"), claimed(tmp_path, KIND):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert (tmp_path / LOCK).exists()
        with claimed(tmp_path, KIND):
            pass
        assert [p.name for p in tmp_path.iterdir()] == [MARK]
    finally:
        os.kill(worker, signal.SIGKILL)


def test_parts_of_the_dead_are_removed(tmp_path):
    from tokensieve.files import machine

    with claimed(tmp_path, KIND):
        pass
    dead = tmp_path / f".model.{machine()}.4194000.0123abcd.part"
    living = tmp_path / f".model.{machine()}.{os.getppid()}.0123abcd.part"
    for folder in (dead, living):
        folder.mkdir()
        (folder / "x").write_text("half")
    with claimed(tmp_path, KIND):
        assert {p.name for p in tmp_path.iterdir()} == {MARK, LOCK, living.name}


def test_a_training_refuses_a_folder_that_another_is_at(tmp_path):
    from tokensieve.train.fusion.run import RUN as FUSION
    from tokensieve.train.selector.run import RUN as SELECTOR

    for writer, kind in (("train selector", SELECTOR), ("train fusion", FUSION)):
        out = tmp_path / writer / "out"
        WRITERS[writer](out)
        _unfinished(out)
        before = everything(out)
        with claimed(out, kind), pytest.raises(ConfigError, match="no other run"):
            WRITERS[writer](out)
        assert everything(out) == before


def test_an_extraction_refuses_a_folder_that_another_is_at(tmp_path):
    from tokensieve.data.store.identity import FEATURES

    with (
        claimed(tmp_path / "store", FEATURES, share="0-of-2"),
        pytest.raises(ConfigError, match="no other run"),
    ):
        _extract(tmp_path / "store")
