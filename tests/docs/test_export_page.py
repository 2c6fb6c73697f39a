"""The code of the page on export runs as printed, and what it keeps is what a sieve keeps."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"


def test_the_code_keeps_what_a_sieve_keeps(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from tokensieve import sieve
    from tokensieve.evaluate.prepare import prepared
    from tokensieve.nn.selector import Selector
    from tokensieve.nn.shipped import folders
    from tokensieve.serving.export import export_selector

    (folder,) = (folder for folder in folders() if folder.name == "selector-nano2")
    export_selector(Selector.from_pretrained(folder), tmp_path / "nano2.onnx")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    here = {}
    exec(code, here)
    loaded = here["loaded"]
    inputs = prepared(loaded, [here["page"]], "What is MW?")
    with torch.no_grad(), sieve(loaded.model, "selector", keep=0.2) as report:
        loaded.model(**inputs)
    assert here["kept"][0].tolist() == report.calls[0].prompts[0].images[0].crops[0].kept.tolist()
    assert here["rows"].shape == (115, 192)
