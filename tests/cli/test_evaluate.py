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
    code, said, _ = run("eval", *options)
    assert (code, len(said.splitlines())) == (0, 1)  # nothing was left to ask


def test_what_is_wrong_is_said_in_a_line(run, tmp_path):
    for options, told in (
        (("--suite", "nowhere.jsonl"), "JSONL"),
        (("--methods", "sieve"), "Unknown"),
        (("--keep", "2.5"), "Expected `keep`"),
        (("--metric", "bleu"), "Unknown metric"),
    ):
        code, out, err = run("eval", "--out", tmp_path / "out", *options)
        assert (code, out) == (2, "")
        assert told in err
