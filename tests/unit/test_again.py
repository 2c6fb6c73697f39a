"""Few tokens first, all of them when unsure."""

import json

import pytest

from tokensieve.assets import asset_path
from tokensieve.data.pictures.decode import open_picture
from tokensieve.errors import ConfigError
from tokensieve.evaluate.again import again_of, ask_until_sure, markdown
from tokensieve.evaluate.ask import Settings
from tokensieve.hf.load import load_model


def written(folder, method, keep, rows, seed=0):
    config = {"suite": "s", "model": "m", "method": method, "keep": keep, "seed": seed}
    rows = [dict(zip(("score", "kept", "sure"), row, strict=True)) for row in rows]
    file = folder / f"{method}--{keep:g}--{seed}.json"
    file.write_text(json.dumps({"config": config, "rows": rows, "refused": ""}))
    return file


def test_by_hand(tmp_path):
    """Of four questions two are below .8: a wrong answer becomes right, a right one wrong."""
    files = [
        written(tmp_path, "full", 1, [(1, 100, 1), (1, 100, 1), (0, 100, 1), (1, 100, 1)]),
        written(tmp_path, "none", 0, [(0, 0, 0.1)] * 4),
        written(tmp_path, "a", 0.2, [(1, 20, 0.9), (0, 20, 0.6), (1, 20, 0.7), (0, 20, 0.99)]),
        written(tmp_path, "a", 0.2, [(1, 20, 0.9)] * 4, seed=1),
    ]
    half, most, nearly = again_of(files)
    assert (half.sure, half.score, half.tokens, half.asked_again) == (0.5, 0.5, 20, 0)
    assert (most.score, most.tokens, most.of, most.asked_again) == (0.5, 70, 100, 0.5)
    assert (nearly.sure, nearly.asked_again, nearly.tokens) == (0.95, 0.75, 95)
    assert most.to_full.mean == pytest.approx(-0.25)
    assert "| `a` | 0.2 | 0.8 | 50.0 |" in markdown(files)
    assert markdown(files[1:]) == ""  # all tokens were not asked


def test_only_the_unsure_are_asked_again():
    nano, picture = load_model("nano"), open_picture(asset_path("pictures") / "cluttered.png")
    settings = Settings(0.4, max_new_tokens=6)
    (sure,) = ask_until_sure(nano, picture, "Read XR.", "selector", settings, 0.0)
    assert sure.kept_tokens < sure.visual_tokens
    first, second = ask_until_sure(nano, picture, "Read XR.", "random", settings, 1.0)
    assert (first.method, second.method) == ("random", "full")
    assert second.kept_tokens == second.visual_tokens
    with pytest.raises(ConfigError, match="Take"):
        ask_until_sure(nano, picture, "Read XR.", "random", settings, 2.0)
