"""Nano 2's pages in suites: kinds have what they promise, and a suite asks a folder's model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lab import run as lab_run
from lab import world
from lab.nano.llava import write_llava
from lab.nano2 import layouts
from lab.nano2.assemble import tokenizer
from lab.nano2.encoder import EncoderRecipe, build_encoder
from lab.nano2.train_reader import ReaderRecipe, build_llava
from tokensieve.errors import ConfigError, InputError, UnknownNameError
from tokensieve.evaluate import run
from tokensieve.evaluate.config import load_suite
from tokensieve.evaluate.records import read, read_all
from tokensieve.evaluate.tasks import load_tasks, picture_hash
from toys.fonts import with_fonts

SUITE = {
    "suite": "tiny", "world": "nano2", "models": {"main": "none yet"}, "kinds": ["mixed", "scene"],
    "topics": ["text", "scene", "panel", "blind"], "keeps": [0.1, 1.0], "pictures": 2,
    "split": "val", "batch": 2, "at_once": 1,
    "variants": [{"name": "full", "method": "full", "keeps": [1.0]},
                 {"name": "stride", "method": "stride"},
                 {"name": "oracle-text", "method": "oracle-text", "kinds": ["mixed"]}],
}  # fmt: skip


@with_fonts
@pytest.mark.parametrize("kind", world.NANO2.kinds)
def test_a_picture_of_a_kind_has_what_the_kind_promises(kind: str) -> None:
    again = world.draw(kind, 0, "test")
    for number in range(2):
        one = world.draw(kind, number, "test")
        same = one.image.tobytes() == again.image.tobytes()
        assert same == (one.questions == again.questions) == (number == 0)
        about = {question.about for question in one.questions}
        assert set(world.SORTS[kind].wants) <= about
        assert ("blind" in about) == (kind == "blind")
        assert all(question.text.endswith("?") for question in one.questions)
        assert one.text_mask.any() == (kind != "scene")
        own = number % 2 == 1 or kind == "unseen"
        assert ("unseen font" in one.groups) == own


@with_fonts
def test_splits_share_no_picture_and_no_held_out_layout() -> None:
    hashes = {picture_hash("lines", split, 1, world.NANO2) for split in ("val", "test")}
    assert len(hashes) == 2
    unseen = world.SORTS["unseen"]
    for split in ("val", "test"):
        assert {unseen.at(n, split) for n in range(8)} == set(layouts.HELD_OUT[split])


@with_fonts
def test_dense_pages_are_the_fullest_of_several() -> None:
    sort = world.SORTS["dense"]
    for number in (0, 2):
        pages = world.candidates(sort, number, "val")
        some = [next(pages) for _ in range(sort.fullest)]
        kept = world.draw("dense", number, "val").text_mask.sum()
        counts = [
            len(set(world.patches_of(one, tuple(range(len(one.codes))))))
            for one in some
            if any(world.questions(one, "dense"))
        ]
        assert kept >= np.median(counts)


def test_what_no_page_has_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "candidates", lambda *_: iter(()))
    with pytest.raises(InputError, match="Expected a page of kind 'blind'"):
        world.draw("blind", 0, "val")


def untrained(folder: Path) -> Path:
    """A model of nano 2's shape in small, with its processors."""
    torch.manual_seed(0)
    vision = build_encoder(EncoderRecipe(width=32, layers=1, heads=2)).config
    model = build_llava(vision, ReaderRecipe(width=32, layers=1, heads=2))
    write_llava(folder, model, tokenizer())
    return folder


@with_fonts
def test_a_suite_asks_a_folders_model_about_these_pages(tmp_path: Path) -> None:
    model, file = untrained(tmp_path / "model"), tmp_path / "suite.json"
    file.write_text(json.dumps(SUITE))
    told = [str(file), "--out", str(tmp_path / "out"), "--model", f"main={model}"]
    lab_run.main(told)
    found = {path["config"]["variant"]: path for path in read_all(tmp_path / "out" / "tiny")}
    assert set(found) == {"full", "stride", "oracle-text"}
    record = read(tmp_path / "out" / "tiny" / "main--mixed--stride--0.json")
    assert record["config"]["world"] == "nano2"
    assert record["identity_at_1"] is True
    places = [(row["topic"], row["keep"], row["n"]) for row in record["rows"]]
    assert places == [("text", 0.1, 2), ("panel", 0.1, 2)]
    row = record["rows"][0]
    assert (row["visual_tokens"], row["kept_tokens"]) == (576, 58)
    assert {"seen font", "unseen font"} < set(row["groups"])
    assert record["config"]["hashes"]["pictures"] != picture_hash("mixed", "val")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    lab_run.main(told)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert after == before


def test_worlds_kinds_and_models_that_are_not_there_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    for change, words in (
        ({"world": "nano3"}, "world 'nano3'. Did you mean 'nano2'"),
        ({"kinds": ["plain"]}, "kind of picture 'plain'"),
    ):
        file.write_text(json.dumps(SUITE | change))
        with pytest.raises(UnknownNameError, match=words):
            lab_run.main([str(file), "--out", str(tmp_path / "out")])
    file.write_text(json.dumps(SUITE))
    suite = load_suite(file)
    with pytest.raises(ConfigError, match="Expected a model as NAME=SOURCE"):
        run.with_models(suite, ["main"])
    with pytest.raises(UnknownNameError, match="model 'mian'"):
        run.with_models(suite, ["mian=x"])
    with pytest.raises(UnknownNameError, match="kind of picture 'lines'"):
        load_tasks("lines", "val", 1)


def test_all_jobs_of_the_kinds_in_memory_come_before_the_next(tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    file.write_text(json.dumps(SUITE | {"kinds": ["lines", "form", "scene", "prose"]}))
    suite = load_suite(file)
    alone = [job.kind for job in suite.queue(0, 1)]
    assert alone == ["lines"] * 2 + ["form"] * 2 + ["scene"] * 2 + ["prose"] * 2
    first = [job.kind for job in suite.queue(0, 2)]
    assert first == ["lines"] * 2 + ["scene"] * 2 + ["prose"] * 2 + ["form"] * 2
