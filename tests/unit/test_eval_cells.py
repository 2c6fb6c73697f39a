"""A user's questions, many methods, records that are gone on with."""

import json
import subprocess
import sys

import pytest

from tokensieve.assets import asset_path
from tokensieve.errors import ConfigError, InputError, TokensieveError, UnknownNameError
from tokensieve.evaluate import cells
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.cells import Cell, cells_of, run_cells
from tokensieve.evaluate.compare import compared, groups_of, markdown, table
from tokensieve.evaluate.questions import load_questions
from tokensieve.hf.load import load_model

SETTINGS = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def nano():
    return load_model("nano")


@pytest.fixture
def suite(tmp_path):
    """Two questions about a shipped page, one of them with a wrong answer."""
    picture = asset_path("pictures") / "cluttered.png"
    (tmp_path / "a.png").write_bytes(picture.read_bytes())
    told = json.loads((asset_path("pictures") / "cluttered.json").read_text())["questions"][0]
    rows = [
        {"image": "a.png", "question": told["question"], "answer": told["answer"], "group": "g"},
        {"image": "a.png", "question": told["question"], "answers": ["x", "y"]},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return file


def test_all_tokens_and_no_image_stand_once_and_what_draws_once_a_seed():
    found = cells_of(["full", "none", "random", "stride", "full"], [0.2, 30], 2)
    assert found == [
        Cell("full", 1.0), Cell("none", 0.0),
        Cell("random", 0.2, 0), Cell("random", 0.2, 1),
        Cell("random", 30, 0), Cell("random", 30, 1),
        Cell("stride", 0.2), Cell("stride", 30),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="at least 1 seed"):
        cells_of(["full"], [0.2], 0)


def test_a_file_of_questions_scores_and_is_gone_on_with(nano, suite, tmp_path, monkeypatch):
    questions = load_questions(str(suite))
    todo = cells_of(["full", "stride"], [0.5], 1)
    asked = []
    real = cells.ask

    def stopped(*arguments):
        asked.append(arguments[3])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(cells, "ask", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cells(nano, questions, todo, SETTINGS, tmp_path / "out")
    # the first answer is kept, though its record was cut off
    files = run_cells(nano, questions, todo, SETTINGS, tmp_path / "out")
    assert asked == ["full", "full", "full", "stride", "stride"]
    assert run_cells(nano, questions, todo, SETTINGS, tmp_path / "out") == files
    assert len(asked) == 5
    record = json.loads(files[0].read_text())
    assert [row["score"] for row in record["rows"]] == [1.0, 0.0]
    assert [row["group"] for row in record["rows"]] == ["g", "all"]
    assert list((tmp_path / "out").glob(".*part")) == []


def test_another_question_is_another_record(nano, suite, tmp_path):
    todo = cells_of(["full"], [0.5], 1)
    run_cells(nano, load_questions(str(suite)), todo, SETTINGS, tmp_path / "out")
    suite.write_text(suite.read_text().replace('"y"', '"z"'))
    before = (tmp_path / "out" / "full--1--0.json").read_text()
    run_cells(nano, load_questions(str(suite)), todo, SETTINGS, tmp_path / "out")
    assert (tmp_path / "out" / "full--1--0.json").read_text() != before


def test_a_row_that_was_cut_off_is_asked_again(nano, suite, tmp_path):
    questions, todo = load_questions(str(suite)), cells_of(["full"], [0.5], 1)
    (tmp_path / "out").mkdir()
    part = tmp_path / "out" / ".full--1--0.part"
    part.write_bytes(b'["another identity", {}]\n["cut o')
    (file,) = run_cells(nano, questions, todo, SETTINGS, tmp_path / "out")
    assert len(json.loads(file.read_text())["rows"]) == 2


def test_a_cell_that_another_process_is_at_is_left_to_it(nano, suite, tmp_path, monkeypatch):
    """The other holds `stride`; this one makes `full` and waits for the rest."""
    if sys.platform == "win32":
        pytest.skip("no locks there")
    out, questions = tmp_path / "out", load_questions(str(suite))
    todo = cells_of(["stride", "full"], [0.5], 1)
    code = (
        "import sys; from pathlib import Path; from tokensieve.folders import claimed;"
        "from tokensieve.evaluate.records import RECORDS\n"
        f"with claimed(Path({str(out)!r}), RECORDS, share='stride--0.5--0'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        waits = []

        def wait(seconds):
            waits.append(sorted(one.name for one in out.glob("*.json")))
            if other.poll() is None:
                other.communicate()

        monkeypatch.setattr(cells, "sleep", wait)
        files = run_cells(nano, questions, todo, SETTINGS, out)
    finally:
        other.kill()
        other.wait()
    assert waits[0] == ["full--1--0.json"]
    assert all(file.exists() for file in files)


def test_a_method_that_does_not_fit_says_why_in_its_line(nano, suite, tmp_path, monkeypatch):
    real = cells.ask

    def refusing(loaded, picture, question, method, settings):
        if method == "stride":
            raise TokensieveError("Expected a grid. Got none.")
        return real(loaded, picture, question, method, settings)

    monkeypatch.setattr(cells, "ask", refusing)
    todo = cells_of(["full", "stride"], [0.5], 1)
    files = run_cells(nano, load_questions(str(suite)), todo, SETTINGS, tmp_path / "out")
    assert [line.refused for line in compared(files)] == ["", "Expected a grid. Got none."]
    assert "| `stride` | 0.5 | | refused: Expected a grid. Got none. | | |" in markdown(files)


def written(folder, method, keep, seed, scores, kept=4):
    folder.mkdir(exist_ok=True)
    rows = [
        {"group": "ab"[n % 2], "score": score, "kept": kept, "ms": {"select": 1.0}}
        for n, score in enumerate(scores)
    ]
    config = {"suite": "s", "model": "m", "method": method, "keep": keep, "seed": seed}
    file = folder / f"{method}--{keep:g}--{seed}.json"
    file.write_text(json.dumps({"config": config, "rows": rows, "refused": ""}))
    return file


def test_tables_by_hand(tmp_path):
    """Seeds are averaged a question; differences are of the same questions."""
    files = [
        written(tmp_path, "full", 1, 0, [1, 1, 1, 0], kept=8),
        written(tmp_path, "random", 0.5, 0, [1, 0, 0, 0]),
        written(tmp_path, "random", 0.5, 1, [1, 1, 0, 0]),
    ]
    full, random = compared(files)
    assert (full.score.mean, full.to_full, full.kept) == (0.75, None, 8)
    assert (random.score.mean, random.seeds) == (0.375, 2)
    assert random.to_full.mean == pytest.approx(-0.375)
    assert groups_of(files) == ["all", "a", "b"]
    assert [line.score.mean for line in compared(files, "a")] == [1.0, 0.5]
    rows = [line.split(",") for line in table(files).splitlines()]
    assert rows[2][:6] == ["all", "random", "0.5", "2", "4.0", "0.3750"]
    assert "| 37.5 [" in markdown(files)
    assert "| 50.0 |" in markdown(files)  # of full


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Expected JSON in line 1"),
        ("[]", "Expected an object in line 1"),
        ('{"image": "a.png", "question": "q"}', "Expected image, question and answer"),
        ('{"image": "a.png", "question": "q", "answers": []}', "Expected image, question"),
        ('{"image": "b.png", "question": "q", "answer": "1"}', "Got no file"),
    ],
)
def test_a_wrong_line_is_named(suite, line, said):
    suite.write_text(line)
    with pytest.raises(InputError, match=said):
        load_questions(str(suite))


def test_what_a_suite_cannot_be(suite, tmp_path):
    with pytest.raises(UnknownNameError, match="metric"):
        load_questions(str(suite), metric="bleu")
    with pytest.raises(ConfigError, match="JSONL"):
        load_questions(str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="at least 1"):
        load_questions(str(suite), limit=0)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="Got none"):
        load_questions(str(tmp_path / "empty.jsonl"))
