"""A suite becomes records, records become tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from lab.oracle import TextOracle
from lab.report.board import Board, Place
from lab.run import CEILINGS
from lab.studies.nano import page as tables
from tokensieve.errors import ConfigError, InputError, UnknownNameError
from tokensieve.evaluate import records, run
from tokensieve.evaluate.config import Suite, Variant, load_suite
from tokensieve.evaluate.subject import Subject, Told
from tokensieve.evaluate.tasks import load_tasks, picture_hash
from tokensieve.types import VisionTokens
from toys.eval_tiny import tiny_subject

SUITE = Suite(
    suite="tiny",
    variants=(
        Variant("full", "full", keeps=(1.0,)),
        Variant("random", "random", per_seed={"seed": [0, 1]}),
        Variant("oracle-text", "oracle-text"),
        Variant("stride", "stride", models=("other",)),
    ),
    kinds=("mixed",),
    keeps=(0.1, 0.5, 1.0),
    pictures=3,
    split="val",
    batch=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of the tiny suite."""
    out = tmp_path_factory.mktemp("results") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_subject", _subject)
        written = run.run(SUITE, out, beside=CEILINGS)
        assert len(written) == 4
        assert run.run(SUITE, out, beside=CEILINGS) == []  # resumed: nothing left to do
        changed = replace(SUITE, pictures=2)
        # another config: made again
        assert len(run.run(changed, out, beside=CEILINGS, only={"full"})) == 1
        assert len(run.run(SUITE, out, beside=CEILINGS, only={"full"})) == 1
        patch.setattr(run, "picture_hash", lambda *_, **__: "another generator")
        # records of other pictures
        assert len(run.run(SUITE, out, beside=CEILINGS, only={"full"})) == 1
        patch.undo()
        patch.setattr(run, "load_subject", _subject)
        assert len(run.run(SUITE, out, beside=CEILINGS, only={"full"})) == 1
    return out


def test_pictures_have_a_hash_of_their_own() -> None:
    hashes = {picture_hash(kind, split) for kind in ("plain", "mixed") for split in ("val", "test")}
    assert len(hashes) == 4
    assert picture_hash("plain", "val") in hashes


def test_adding_pictures_gives_the_record_of_a_whole_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures first, the third added: equal to three at once but for times."""
    monkeypatch.setattr(run, "load_subject", _subject)
    run.run(replace(SUITE, pictures=2), tmp_path, beside=CEILINGS, only={"random"})
    path = tmp_path / "main--mixed--random--0.json"
    assert records.read(path)["rows"][0]["n"] == 2
    asked: list[int] = []
    score = run.score
    monkeypatch.setattr(
        run,
        "score",
        lambda m, batch, *a, **k: asked.append(len(batch.items)) or score(m, batch, *a, **k),
    )
    run.run(SUITE, tmp_path, beside=CEILINGS, only={"random"})
    assert set(asked) == {1}
    added, whole = records.read(path), records.read(folder / path.name)
    assert added["config"] == whole["config"]
    for a, b in zip(added["rows"], whole["rows"], strict=True):
        for key in ("topic", "keep", "n", "right", "groups", "hits", "low", "high"):
            assert a[key] == b[key]
        for key in ("kept_tokens", "prompt_tokens", "llm_prefill_flops"):
            assert a[key] == pytest.approx(b[key], rel=1e-4)


def _subject(name: str, beside: Mapping[str, Told] | None = None) -> Subject:
    subject = tiny_subject()
    subject.beside = beside or {}
    return subject


def test_record_says_how_it_was_made(folder: Path) -> None:
    record = records.read(folder / "main--mixed--random--1.json")
    assert record["config"]["options"] == {"seed": 1}
    assert record["identity"] == records.identity(record["config"])
    assert record["identity_at_1"] is True
    for key in ("commit", "versions", "machine", "threads", "seconds"):
        assert record[key] not in (None, "")
    places = [(row["topic"], row["keep"]) for row in record["rows"]]
    assert places == [("text", 0.1), ("text", 0.5), ("panel", 0.1), ("panel", 0.5)]
    row = record["rows"][0]
    assert (row["n"], row["visual_tokens"], row["kept_tokens"]) == (3, 256, 26)
    assert row["llm_prefill_flops"] < record["rows"][1]["llm_prefill_flops"]
    assert sum(total for _, total in row["groups"].values()) == 2 * 3


def test_a_name_that_nothing_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="variant or model 'selectr'"):
        run.run(SUITE, tmp_path, beside=CEILINGS, only={"selectr"})


def test_shards_share_the_work_and_miss_none() -> None:
    """Each begins with its own kinds and ends with the other's jobs, last ones first."""
    suite = replace(SUITE, kinds=("plain", "cluttered", "mixed"))
    jobs = list(suite.jobs())
    first, second = suite.queue(0, 2), suite.queue(1, 2)
    for queue in (first, second):
        assert len(queue) == len(jobs)
        assert all(job in queue for job in jobs)
    assert [job.kind for job in first[:4]] == ["plain", "mixed", "plain", "mixed"]
    assert {job.kind for job in second[:4]} == {"cluttered"}
    assert first[8:] == second[:4][::-1]
    assert list(suite.queue(0, 1)) == jobs


def test_a_model_of_several_seeds_has_one_job_each() -> None:
    """The i-th seed of a variant stands on the i-th of the model; others stand on every one."""
    suite = Suite(
        suite="seeds",
        models={"one": "a", "two": ["b", "c"]},
        variants=(
            Variant("stride", "stride"),
            Variant("random", "random", per_seed={"seed": [5, 6]}),
        ),
        kinds=("plain",),
    )
    jobs = [(j.model, j.source, j.variant.name, j.seed, dict(j.options)) for j in suite.jobs()]
    assert jobs == [
        ("one", "a", "stride", 0, {}),
        ("one", "a", "random", 0, {"seed": 5}),
        ("one", "a", "random", 1, {"seed": 6}),
        ("two", "b", "stride", 0, {}),
        ("two", "b", "random", 0, {"seed": 5}),
        ("two", "c", "stride", 1, {}),
        ("two", "c", "random", 1, {"seed": 6}),
    ]
    assert len({job.file_name for job in suite.jobs()}) == len(jobs)
    three = replace(suite, variants=(Variant("random", "random", per_seed={"seed": [1, 2, 3]}),))
    with pytest.raises(ConfigError, match=r"Expected 1 or 2 seeds in variant 'random'.* Got 3"):
        list(three.jobs())


@pytest.mark.parametrize("source", ["", []])
def test_a_model_without_a_source_is_refused(source: object, tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    file.write_text(json.dumps({"suite": "x", "models": {"main": source}}))
    with pytest.raises(ConfigError, match="Expected model 'main' as what is loaded"):
        load_suite(file)


def test_models_that_are_not_trained_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "load_subject", _subject)
    there = tmp_path / "model"
    there.mkdir()
    suite = replace(
        SUITE, models={"main": [str(there), str(tmp_path / "gone")]}, keeps=(0.5,), pictures=2,
        variants=(Variant("stride", "stride"),),
    )  # fmt: skip
    assert [path.name for path in run.run(suite, tmp_path / "out")] == [
        "main--mixed--stride--0.json"
    ]
    assert f"not run: no model at {tmp_path / 'gone'}" in capsys.readouterr().out


def test_tables_from_records(folder: Path, tmp_path: Path) -> None:
    """Every table, the plot and the README's block; a row not run says so."""
    suite = {"suite": "tiny", "kinds": ["mixed"], "keeps": [0.1, 0.5, 1.0], "pictures": 3,
             "split": "val",
             "variants": [{"name": "full", "method": "full"},
                          {"name": "random", "method": "random"},
                          {"name": "stride", "method": "stride"}]}  # fmt: skip
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(suite))
    readme = tmp_path / "README.md"
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    tables.main([str(file), "--results", str(folder.parent), "--root", str(tmp_path)])
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n| right answers, % | 10% of tokens |")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    assert text.count("| `random`, the best of 2 untrained here | 0.0 |") == 1
    assert "| `random` |" not in text  # a baseline that leads stands once
    assert "Measured on 3 held-out" in text
    assert "cannot show" in text
    page = (tmp_path / "docs" / "results" / "nano.md").read_text()
    assert page.count("| random | 3 | 0.0 (0.0–0.0) | 0.0 (0.0–0.0) | 0.0 (0.0–0.0) |") == 3
    assert "| stride |  | not run |" in page
    assert "python -m lab.run" in page
    assert (tmp_path / "docs" / "figures" / "tiny.png").stat().st_size > 1000
    assert (folder / "scores.csv").read_text().count("\n") == 1 + 2 + 3 * 4


def test_board_means_over_topics_picture_by_picture(folder: Path) -> None:
    board = Board.of(folder)
    mean = board.hits(Place("main", "random", "mixed", "mean", 0.1))
    text = board.hits(Place("main", "random", "mixed", "text", 0.1))
    panel = board.hits(Place("main", "random", "mixed", "panel", 0.1))
    assert len(mean) == 2
    for m, t, p in zip(mean, text, panel, strict=True):
        assert m.tolist() == ((t.astype(float) + p) / 2).tolist()
    assert board.estimate(Place("main", "stride", "mixed", "text", 0.1)) is None


def test_no_records_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"suite": "s", "variants": []}))
    with pytest.raises(InputError, match="Expected records in"):
        tables.main([str(file), "--results", str(tmp_path), "--root", str(tmp_path)])


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        ({"suite": "s", "variants": [], "kind": []}, UnknownNameError, "suite field 'kind'"),
        ({"suite": "s", "variants": [], "topics": ["x"]}, UnknownNameError, "topic 'x'"),
        ({"suite": "s", "variants": [{"nam": 1}]}, UnknownNameError, "variant field 'nam'"),
        ({"suite": "s", "variants": [], "keeps": [1.7]}, ConfigError, "Expected `keep`"),
        ({"suite": "s", "models": {"main": [3]}}, ConfigError, "Expected `models` as a mapping"),
        ({"suite": "s", "variants": 3}, ConfigError, "Expected `variants` as a list of objects"),
        ({"suite": "s", "variants": [], "pictures": True}, ConfigError, "as a whole number"),
        ({"suite": "s", "variants": [], "batch": 10**9}, ConfigError, "`batch` of at most"),
        ({"variants": []}, ConfigError, "`suite` among the fields of Suite"),
    ],
)
def test_bad_suites(tmp_path: Path, raw: dict[str, object], error: type[Exception], words: str
                    ) -> None:  # fmt: skip
    file = tmp_path / "s.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(error, match=words):
        load_suite(file)


def test_missing_suite_and_bad_shard(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected a suite as JSON"):
        load_suite(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="Expected a shard"):
        run.parse_shard("2/2")
    uneven = Variant("v", "random", per_seed={"seed": [0], "x": [1, 2]})
    with pytest.raises(ConfigError, match="equally many"):
        list(uneven.seeds())


def test_shipped_suites_name_known_methods() -> None:
    from tokensieve.methods.registry import method_names

    suite = load_suite(Path(__file__).parents[2] / "lab/studies/nano/suite.json")
    known = {*method_names(), *CEILINGS}
    assert {variant.method for variant in suite.variants} <= known
    assert suite.split == "test"
    assert suite.pictures >= 1000


def test_every_picture_asks_the_same_question_every_time() -> None:
    first, again = (load_tasks("mixed", "val", 4) for _ in range(2))
    assert [t.topic for t in first] == ["text", "panel"]
    for a, b in zip(first, again, strict=True):
        assert [i.question for i in a.items] == [i.question for i in b.items]
        assert [i.ordinal for i in a.items] == [0, 1, 2, 3]
    assert any(item.question.line > 0 for item in first[0].items)  # not always the first line
    (places,) = load_tasks("mixed", "val", 4, topics=["place"])
    assert {item.question.topic for item in places.items} == {"where"}
    with pytest.raises(ConfigError, match="at least one picture"):
        load_tasks("mixed", "val", 0)


def test_oracle_takes_text_first() -> None:
    text = torch.tensor([[False, True, False, True], [True, False, False, False]])
    vision = VisionTokens(torch.zeros(2, 4, 3))
    kept = TextOracle(text=text).reduce(vision, torch.tensor([2, 2])).kept
    assert kept[0].tolist() == text[0].tolist()
    assert kept[1, 0]
    assert kept.sum(1).tolist() == [2, 2]
    with pytest.raises(InputError, match="Expected a text mask"):
        TextOracle(text=text[:1]).scores(vision)


def test_a_half_written_record_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(ValueError, match="JSON compliant"):
        records.write(path, {"config": {}, "x": float("nan")})
    assert not path.exists()
    path.write_text('{"config": ')
    with pytest.raises(InputError, match="Expected a JSON record"):
        records.read(path)
