"""`tokensieve bench`: a model that runs, measured."""

import json


def test_a_model_of_ones_own_is_measured(run, model_dir, tmp_path):
    told = ("--model", model_dir, "--methods", "divprune", "--keep", "0.5", "--alone")
    told = (*told, "--rounds", 1, "--new", 1, "--batch", 2)
    code, said, err = run("bench", *told, "--json", "--out", tmp_path / "records" / "a.json")
    assert (code, err) == (0, "")
    full, divprune = json.loads(said)["rows"]
    assert (full["tokens"], divprune["tokens"]) == (16, 8)
    assert json.loads((tmp_path / "records" / "a.json").read_text())["config"]["batch"] == 2
    code, said, _ = run("bench", *told)
    assert code == 0
    assert "divprune" in said


def test_a_method_that_reads_gradients_is_measured(run, model_dir):
    told = ("--methods", "trio", "--keep", "0.5", "--alone", "--rounds", 1, "--new", 1)
    code, said, err = run("bench", "--model", model_dir, *told, "--json")
    assert (code, err) == (0, "")
    full, trio = json.loads(said)["rows"]
    assert not trio["refused"]
    assert trio["ms"]["prefill"] > 0 < full["ms"]["prefill"]


def test_what_only_a_preset_takes(run, model_dir):
    for option in ("--tokens", "--text", "--layers"):
        code, _, err = run("bench", "--model", model_dir, option, 64)
        assert code == 2
        assert "Leave them out" in err


def test_a_device_that_is_not_there(run):
    code, _, err = run("bench", "--device", " ")
    assert code == 2
    assert "Expected a device of this machine" in err
