"""Methods of `tokensieve ask`: their options, and one that does not fit among several."""

import json

import pytest
from PIL import Image

from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.ask import run as run_all
from tokensieve.evaluate.options import read_options
from tokensieve.hf.models.loaded import Loaded
from toys.llava_tiny import tiny_model, tiny_processor

ASK = ("what is it", "--max-new-tokens", 2, "--model")


@pytest.fixture
def ask(run, picture, model_dir):
    """Ask the tiny model with `options`; exit code, stdout and stderr."""
    return lambda *options: run("ask", picture, *ASK, model_dir, *options)


def test_options_are_read_as_the_fields_say():
    plan = ["layer=2", "recycle=True", "cover=3", "newlines=drop"]
    own = ["counts=adaptive", "rule=none", "largest=false", "alpha=1"]
    assert read_options([*plan, *own], ["selector", "feature-norm", "hired"]) == (
        {"layer": 2, "recycle": True, "cover": 3, "newlines": "drop"},
        {
            "selector": {"counts": "adaptive", "rule": None},
            "feature-norm": {"largest": False},
            "hired": {"alpha": 1.0},
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("ruel=top", UnknownNameError, r"'ruel'. Did you mean 'rule'\? Known: weights, rule, "
         "counts, words of selector; seed of random; layer, recycle, cover, site, newlines, "
         "frames, trusted of any"),
        ("rule=tpo", UnknownNameError, "Unknown rule 'tpo'. Did you mean 'top'"),
        ("rule", ConfigError, "Expected --option NAME=VALUE. Got 'rule'"),
        ("=top", ConfigError, "Expected --option NAME=VALUE"),
        ("layer=two", ConfigError, "Expected `layer` as a whole number or None. Got 'two'"),
        ("layer=0", ConfigError, "Expected `layer` of 1 or more. Got 0"),
        ("recycle=1", ConfigError, "Expected `recycle` as True or False. Got '1'"),
        ("cover=__import__('os')", ConfigError, "Expected `cover` as a whole number"),
    ],
)  # fmt: skip
def test_options_that_are_none(text, error, said):
    with pytest.raises(error, match=said):
        read_options([text], ["selector", "random"])


def test_options_reach_the_method_and_the_plan(ask, tmp_path):
    def got(*options):
        code, out, err = ask("--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    full = got("--method", "full", "--option", "layer=1", "--option", "recycle=true")
    assert full["kept_tokens"] == 16  # a baseline goes without
    late = got("--method", "stride", "--keep", "0.5", "--option", "layer=1")
    assert (late["kept_tokens"], late["prompt_tokens"]) == (8, full["prompt_tokens"])
    sheets = [tmp_path / "smallest.png", tmp_path / "largest.png"]
    for sheet, largest in zip(sheets, ("false", "true"), strict=True):
        option = ("--option", f"largest={largest}")
        got("--method", "feature-norm", "--keep", "0.25", "--overlay", sheet, *option)
    assert sheets[0].read_bytes() != sheets[1].read_bytes()


def test_a_method_that_reads_gradients_answers(ask):
    code, _, err = ask("--method", "trio", "--keep", 0.5)
    assert (code, err) == (0, "")


def test_one_that_does_not_fit_leaves_the_others_standing(ask, tmp_path):
    options = ("--method", "selector", "--compare", "stride,conditional", "--keep", "0.5")
    code, out, err = ask(*options, "--json", "--overlay", tmp_path / "kept.png")
    assert code == 2  # what --method asked for was not given
    assert err.startswith("tokensieve: selector: Expected a selector for the encoder")
    assert err.count("\n") == 1
    got = json.loads(out)
    assert got["method"] == "selector"
    assert "Expected a selector for the encoder" in got["error"]
    assert "answer" not in got
    stride, conditional = got["compare"]
    assert stride["kept_tokens"] == 8
    assert "Expected `weights` of a selector trained on hidden states" in conditional["error"]
    assert (tmp_path / "kept.png").is_file()


def test_a_keep_that_one_cannot_reach_is_told_in_the_table(ask):
    options = ("--compare", "feature-norm", "--keep", "0.25", "--option", "cover=3")
    code, out, err = ask("--method", "full", *options)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "(refused)" in rows["feature-norm"]
    assert "16/16" in rows["full"]
    assert "feature-norm: refused. Expected a budget of 9 tokens or more" in " ".join(out.split())


def test_a_method_asked_for_without_its_weights_is_exit_code_2(ask):
    code, out, err = ask("--weights", "/nope", "--compare", "random", "--json")
    assert code == 2
    assert err.startswith("tokensieve: selector: Expected")
    got = json.loads(out)
    assert "/nope" in got["error"]
    assert "answer" in got["compare"][0]
    code, _, err = ask("--method", "random", "--weights", "/nope", "--compare", "selector")
    assert (code, err) == (0, "")


def test_an_option_goes_to_each_method_that_takes_it(ask):
    """todre has other rules than the selectors; both methods have the field."""
    for methods in (["todre", "selector"], ["selector", "todre"]):
        wrong = read_options(["rule=diverse"], methods)
        assert wrong == ({}, {"todre": {"rule": "diverse"}, "selector": {"rule": "diverse"}})
        with pytest.raises(UnknownNameError, match="Unknown rule 'neither'"):
            read_options(["rule=neither"], methods)
    compare = ("--method", "full", "--compare", "todre,selector", "--json")
    code, out, err = ask(*compare, "--option", "rule=diverse")
    assert (code, err) == (0, "")
    assert "Unknown rule 'diverse'" in json.loads(out)["compare"][0]["error"]
    assert "rule" not in json.loads(out)["compare"][1].get("error", "Expected a selector")


def test_options_of_one_method_go_on_top_of_those_of_all():
    settings = Settings(options={"seed": 0}, by_method={"random": {"seed": 3}})
    assert settings.plan("random")["seed"] == 3
    assert "seed" not in settings.plan("stride")
    with pytest.raises(UnknownNameError, match="Unknown method 'randon'"):
        Settings(by_method={"randon": {"seed": 3}})


def test_where_none_fits_all_reasons_are_said(ask):
    code, out, err = ask("--method", "selector", "--compare", "conditional")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "selector: Expected a selector for the encoder" in err
    assert "conditional: Expected `weights` of a selector trained on hidden states" in err


def test_what_is_wrong_for_all_is_said_once(ask):
    code, out, err = ask("--method", "stride", "--compare", "random", "--device", "tpu:9")
    assert (code, out) == (2, "")
    assert err.startswith("tokensieve: Expected a device of this machine")
    code, out, err = ask("--method", "stride", "--compare", "random", "--keep", "7.5")
    assert (code, out) == (2, "")
    assert err.count("Expected") == 1
    for option, name in {"--positions": "positions", "--pool": "pool"}.items():
        code, out, err = ask("--compare", "random,full", option, "banana")
        assert (code, out) == (2, "")
        assert err.startswith(f"tokensieve: Unknown {name} 'banana'. Known: ")
        assert err.count("banana") == 1
    code, out, err = ask("--method", "stride", "--compare", "random", "--option", "layer=99")
    assert (code, out) == (2, "")
    assert err.count("99") == 1
    code, _, err = ask("--compare", "divprune+fastv")
    assert code == 2
    assert "Got divprune+fastv, which needs a `keep` for each. Use it from Python" in err


def test_no_method_gives_no_answer():
    loaded = Loaded("tiny", tiny_model(), tiny_processor())
    assert run_all(loaded, Image.new("RGB", (48, 48)), "what", [], Settings()) == []


def test_the_dtype_to_compute_in(ask):
    def bytes_of(*options):
        return json.loads(ask("--method", "stride", "--json", *options)[1])["kv_bytes"]

    assert bytes_of("--device", "cpu") == 2 * bytes_of("--dtype", "bfloat16")
    code, _, err = ask("--dtype", "int8")
    assert code == 2
    assert "Unknown dtype to compute in 'int8'" in err
