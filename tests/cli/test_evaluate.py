"""`tokensieve eval`: questions in, a table out."""

import csv

from PIL import Image

from tokensieve.evaluate.cells import BESIDE


def test_nanos_suite_as_a_table_and_again(run, tmp_path):
    out = tmp_path / "out"
    options = ("--limit", 1, "--keep", "0.3", "--methods", "divprune", "--seeds", 1, "--out", out)
    code, said, err = run("eval", *options)
    assert (code, err) == (0, "")
    assert len(said.splitlines()) == 8
    rows = list(csv.DictReader((out / "table.csv").open()))
    whole = [row for row in rows if row["group"] == "all"]
    assert sorted(row["method"] for row in whole) == sorted((*BESIDE, "divprune"))
    assert {row["tokens"] for row in whole if row["method"] == "full"} == {"256.0"}
    assert Image.open(out / "curves.png").size[0] > 500
    assert Image.open(out / "benchmarks.png").size[0] > 500
    assert (out / "layout.csv").read_text().count("\n") == 1 + len(whole)
    assert (out / "hard.csv").exists()
    code, said, _ = run("eval", *options)
    assert (code, len(said.splitlines())) == (0, 1)  # nothing was left to ask


def test_what_is_wrong_is_said_in_a_line(run, tmp_path):
    own = tmp_path / "own.jsonl"
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    own.write_text('{"image": "a.png", "question": "What?", "answer": "A"}\n')
    for options, told in (
        (("--suite", "nowhere.jsonl"), "JSONL"),
        (("--methods", "sieve"), "Unknown"),
        (("--keep", "2.5"), "Expected `keep`"),
        (("--suite", own, "--metric", "bleu"), "Unknown metric"),
        (("--receipts", tmp_path), "Expected no --receipts with --suite nano"),
        (("--suite", "keys", "--text-height", 17), "Expected no --text-height with --suite keys"),
        (("--metric", "anls"), "Expected no --metric with --suite nano"),
        (("--suite", "receipts", "--max-new-tokens", 3), "no --max-new-tokens with --suite rec"),
        (("--suite", "receipts", "--overlays", 1), "Expected no --overlays with --suite receipts"),
    ):
        code, out, err = run("eval", "--out", tmp_path / "out", *options)
        assert (code, out) == (2, "")
        assert told in err


def test_receipts_of_ones_own(run, model_dir, tmp_path):
    for sub in ("img", "box"):
        (tmp_path / "data" / sub).mkdir(parents=True)
    Image.new("RGB", (60, 60), "white").save(tmp_path / "data" / "img" / "a.png")
    (tmp_path / "data" / "box" / "a.json").write_text('[{"box": [5, 5, 50, 15], "text": "AB"}]')
    told = ("--suite", "receipts", "--model", model_dir, "--methods", "stride", "--keep", "0.5")
    code, _, err = run("eval", *told, "--out", tmp_path / "out")
    assert code == 2
    assert "--receipts FOLDER" in err
    options = (*told, "--receipts", tmp_path / "data", "--seeds", 1, "--out", tmp_path / "out")
    code, _, err = run("eval", *options, "--text-height", 0)
    assert code == 2
    assert "Expected a text height above 0 pixels. Got 0.0" in err
    code, said, err = run("eval", *options)
    assert (code, err) == (0, "")
    assert said.splitlines()[0] == "1 of 1: a"
    assert "| `stride` | 0.5 | 8 |" in (tmp_path / "out" / "table.md").read_text()
