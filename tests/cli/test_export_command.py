"""`tokensieve export`: what it writes, and what it refuses in one line."""

import json

import pytest


def test_what_cannot_be_exported_is_one_line(run, tmp_path):
    file = tmp_path / "a.onnx"
    for arguments, said in (
        (("divprune", "nano2", "--to", file), "Expected the method 'selector'"),
        (("selektor", "nano2", "--to", file), "Did you mean 'selector'?"),
        (("selector", tmp_path, "--to", file), f"Expected config.json in {tmp_path}"),
        (("selector", "nano3", "--to", file), "Expected a folder with config.json"),
        (("selector", "nano2", "--to", tmp_path / "a.pt"), "Expected a file of a kind .onnx"),
        (("selector", "nano2", "--to", file, "--grid", "24"), "--grid as ROWSxCOLUMNS"),
        (("selector", "nano2", "--to", file, "--keep", "0.4"), "`grid` and `keep` together"),
        (("selector", "nano2", "--to", file, "--rule", "gated"), "rule is 'top' or 'diverse'"),
        (("selector", "nano2", "--to", file, "--rule", "first"), "Unknown rule 'first'"),
        (
            ("selector", "nano2", "--to", file, "--grid", "9x9", "--keep", "0.4"),
            "Expected the grid (24, 24) of the encoder trained for",
        ),
    ):
        code, out, err = run("export", *arguments)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_and_told(run, tmp_path):
    for package in ("onnx", "onnxscript", "openvino"):
        pytest.importorskip(package)
    file = tmp_path / "a.xml"
    command = ("export", "selector", "nano2", "--to", file, "--grid", "24x24", "--keep", "0.2")
    code, out, err = run(*command, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["outputs"]["kept"] == [1, 115]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert f"Got {file}, which is there already" in err
