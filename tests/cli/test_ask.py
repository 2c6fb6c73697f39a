"""`tokensieve ask`: what it prints, what it counts, what it writes."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tokensieve.errors import UnsupportedError
from tokensieve.evaluate import console
from tokensieve.evaluate.answer import Answer
from tokensieve.evaluate.ask import least_likely
from tokensieve.evaluate.console import scaled

ASK = ("what is it", "--max-new-tokens", 3, "--model")


@pytest.fixture
def ask(run, picture, model_dir):
    """Ask the tiny model with `options`; the JSON object printed."""

    def asking(*options):
        code, out, err = run("ask", picture, *ASK, model_dir, "--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    return asking


def test_json_holds_answer_counts_and_costs(ask, model_dir):
    got = ask("--method", "stride", "--keep", "0.5")
    assert got["method"] == "stride"
    assert got["keep"] == 0.5
    assert got["model"] == str(model_dir)
    assert (got["kept_tokens"], got["visual_tokens"]) == (8, 16)
    assert got["new_tokens"] == 3
    assert set(got["ms"]) == {"encode", "select", "prefill", "decode"}
    assert got["ms"]["prefill"] > 0
    # 2 layers x (key, value) x 1 head x 8 wide x 4 bytes a token; the last token is not cached
    assert got["kv_bytes"] == (got["prompt_tokens"] + 3 - 1) * 2 * 2 * 8 * 4
    assert got["prompt_tokens"] == 8 + 4
    assert got["llm_flops"] == got["flops"]["prefill"] + got["flops"]["decode"]
    assert isinstance(got["answer"], str)
    assert "compare" not in got


def test_fewer_tokens_cost_less(ask):
    half = ask("--method", "stride", "--keep", "0.5")
    full = ask("--method", "stride", "--keep", "1")
    assert full["kept_tokens"] == 16
    assert half["kv_bytes"] < full["kv_bytes"]
    assert half["llm_flops"] < full["llm_flops"]


def test_keep_of_three_is_three_tokens_and_of_one_or_many_is_all(ask):
    assert ask("--method", "stride", "--keep", "3")["kept_tokens"] == 3
    for one in ("1", "1.0", "17", "1000000"):
        assert ask("--method", "random", "--keep", one)["kept_tokens"] == 16


def test_compare_lists_each_method_and_keeps_the_main_one_on_top(ask):
    got = ask("--method", "stride", "--compare", "random,full,none,stride", "--keep", "0.25")
    assert got["method"] == "stride"
    assert [(one["method"], one["kept_tokens"], one["keep"]) for one in got["compare"]] == [
        ("random", 4, 0.25),
        ("full", 16, 1.0),
        ("none", 0, 0.0),
        ("stride", 4, 0.25),
    ]
    assert all(one["visual_tokens"] == 16 for one in got["compare"])
    mine = got["compare"][3]
    assert all(got[key] == mine[key] for key in mine)


def test_full_answers_like_the_model_alone(ask, model_dir, picture):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(model_dir)
    processor = AutoProcessor.from_pretrained(model_dir)
    inputs = processor(
        images=[Image.open(picture)], text=["<image> what is it ?"], return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    alone = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for method in ("full", "stride"):
        assert ask("--method", method, "--keep", "1")["answer"] == alone.strip()


def test_the_seed_decides_what_random_keeps(ask, tmp_path):
    def kept(seed):
        ask("--method", "random", "--seed", seed, "--overlay", tmp_path / f"{seed}.png")
        return (tmp_path / f"{seed}.png").read_bytes()

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_the_table_is_readable_when_piped(run, picture, model_dir):
    code, out, err = run(
        "ask", picture, *ASK, model_dir, "--method", "stride", "--compare", "random,full"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in out
    rows = [line for line in lines if line.split()[:1] in (["stride"], ["random"], ["full"])]
    assert [row.split()[0] for row in rows] == ["stride", "random", "full"]
    assert "6/16" in rows[0]
    assert "16/16" in rows[2]


def test_a_method_inside_the_llm_counts_every_layer_by_itself(ask):
    full, before, inside = (
        ask("--method", name, "--keep", "0.5") for name in ("full", "stride", "fastv")
    )
    assert (inside["kept_tokens"], inside["visual_tokens"]) == (8, 16)
    assert inside["prompt_tokens"] == full["prompt_tokens"] == before["prompt_tokens"] + 8
    assert 2 * inside["kv_bytes"] == full["kv_bytes"] + before["kv_bytes"]  # one of two layers
    for stage in ("prefill", "decode"):
        both = full["flops"][stage] + before["flops"][stage]
        assert 2 * inside["flops"][stage] == both


def test_a_method_trained_for_one_llm_asks_for_its_weights(run, picture, model_dir):
    code, out, err = run("ask", picture, *ASK, model_dir, "--method", "conditional", "--ask-first")
    assert (code, out) == (2, "")
    assert "Expected `weights` of a selector trained on hidden states of this LLM. Got none" in err


def test_the_question_stands_in_front_where_asked_for(ask):
    plain = ask("--method", "stride")
    first = ask("--method", "stride", "--ask-first")
    assert first["prompt_tokens"] == plain["prompt_tokens"] + 3  # "what is it" once more
    assert first["visual_tokens"] == plain["visual_tokens"]


def test_the_overlay_shows_the_picture_and_each_method(run, picture, model_dir, tmp_path):
    target = tmp_path / "kept.png"
    options = ("--method", "stride", "--compare", "random,none", "--overlay", target)
    code, out, _ = run("ask", picture, *ASK, model_dir, *options)
    assert code == 0
    assert str(target) in out.replace("\n", "")
    with Image.open(target) as page:
        assert page.width == 4 * (384 + 14) + 14
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.png", "noise.png"]


def test_costs_that_no_formula_knows_are_null(ask, monkeypatch):
    def unknown(config):
        raise UnsupportedError("Expected a dense LLM.")

    monkeypatch.setattr("tokensieve.evaluate.ask.TransformerShape.of_llm", unknown)
    got = ask("--method", "stride", "--keep", "0.5")
    assert (got["kv_bytes"], got["llm_flops"], got["flops"]) == (None, None, {})
    assert isinstance(got["answer"], str)
    assert scaled(got["llm_flops"]) == "?"


def test_an_answer_that_is_not_sure_is_told(ask, capsys):
    got = ask("--method", "stride", "--keep", "0.5")
    assert 0 < got["sure"] < 0.5  # of an untrained model, no token is likely
    known = {f.name for f in fields(Answer)}
    unsure = Answer(**{name: value for name, value in got.items() if name in known}, images=())
    sure = replace(unsure, method="full", sure=0.97)
    prose = replace(unsure, method="none", new_tokens=200)  # has unlikely tokens as a rule
    console.show(console.answers_table("What?", [unsure, sure, prose]))
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("not sure") == 1
    assert "stride: not sure" in out


def test_the_least_likely_token_is_of_those_taken():
    """By hand: of the row the answer came by, the probability of its own token, not the largest."""
    shares = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.1, 0.9], [0.6, 0.4]]])
    logits, new = tuple(shares.log()), torch.tensor([1, 0])
    plain = {"logits": logits}
    assert least_likely(SimpleNamespace(**plain, get=plain.get), new) == pytest.approx(0.1)
    beams = plain | {"beam_indices": torch.tensor([[1, 1]])}
    assert least_likely(SimpleNamespace(**beams, get=beams.get), new) == pytest.approx(0.6)
    ended = plain | {"beam_indices": torch.tensor([[1, -1]])}
    assert least_likely(SimpleNamespace(**ended, get=ended.get), new) == pytest.approx(0.75)
