"""The embedded model from the command line: it reads, and the selector saves without harm."""

import json

import pytest

from tokensieve.assets import asset_path
from tokensieve.data.synth.shipped import shipped_pictures

PICTURES = {one.name: one for one in shipped_pictures()}


@pytest.mark.parametrize("name", ["page", "cluttered", "scene"])
def test_nano_reads_its_own_pictures(run, name):
    picture = PICTURES[name]
    question, right = picture.questions[0]
    code, out, err = run("ask", picture.path, question, "--method", "full", "--json")
    assert (code, err) == (0, "")
    got = json.loads(out)
    assert got["answer"] == right
    assert (got["model"], got["visual_tokens"]) == ("nano", 256)


def test_the_selector_keeps_what_the_question_needs(run):
    picture = PICTURES["page"]
    question, right = picture.questions[0]
    code, out, _ = run("ask", picture.path, question, "--compare", "selector,full,none", "--json")
    assert code == 0
    selector, full, none = json.loads(out)["compare"]
    assert (selector["answer"], full["answer"]) == (right, right)
    assert none["answer"] != right
    assert (selector["kept_tokens"], full["kept_tokens"], none["kept_tokens"]) == (102, 256, 0)
    assert none["kv_bytes"] < selector["kv_bytes"] < 0.5 * full["kv_bytes"]
    assert selector["llm_flops"] < 0.5 * full["llm_flops"]
    # three layers of 128 and 256 over 256 tokens, and two scores a token
    scoring = 3 * 4 * 256 * 128 * (2 * 128 + 256 + 256) + 4 * 256 * 128
    assert selector["flops"]["selection"] == scoring
    assert "selection" not in full["flops"]


def test_a_count_and_crops(run):
    """3 of 256 tokens of one crop; LLaVA-NeXT's crops each spend their own budget."""
    path = PICTURES["scene"].path
    code, out, _ = run("ask", path, "what", "--method", "stride", "--keep", 3, "--json")
    assert code == 0
    assert json.loads(out)["kept_tokens"] == 3
    options = ("--model", "nano-next", "--method", "stride", "--keep", 0.5, "--json")
    code, out, _ = run("ask", path, "what", *options)
    assert code == 0
    got = json.loads(out)
    assert got["visual_tokens"] > 256
    assert 0.45 < got["kept_tokens"] / got["visual_tokens"] < 0.6


def test_nano2_reads_a_typeset_page(run):
    """A page in fonts that it never saw; its questions are among those it was chosen for."""
    folder = asset_path("pictures")
    asked = json.loads((folder / "typeset.json").read_text())["questions"]
    for one in asked:
        code, out, _ = run(
            "ask", "example:typeset", one["question"], "--model", "nano2", "--method", "full",
            "--json",
        )  # fmt: skip
        got = json.loads(out)
        assert (code, got["answer"]) == (0, one["answer"])
        assert got["visual_tokens"] == 576
