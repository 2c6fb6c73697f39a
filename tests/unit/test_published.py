"""The papers' numbers beside ours."""

import json

import pytest

from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate.lmms.published import METRICS, beside, main, markdown

MODEL = "llava-hf/llava-v1.6-vicuna-7b-hf"


def test_what_was_run_stands_beside_and_the_rest_has_its_command(tmp_path, capsys):
    told = {
        "config": {"model_args": f"pretrained={MODEL},method=selector,keep=0.2222"},
        "results": {"docvqa_val": {"alias": "x", "anls,none": 0.601, "anls_stderr,none": "N/A"}},
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1_results.json").write_text(json.dumps(told))
    rows = list(beside(tmp_path))
    (one,) = [row for row in rows if row.ours is not None]
    assert (one.run, one.benchmark, one.paper) == ((MODEL, "selector", 640), "docvqa_val", 61.9)
    assert one.ours == pytest.approx(60.1)
    text = markdown(rows)
    assert "| `selector` | 640 | docvqa_val | 61.9 | 60.1 | -1.8 |" in text
    assert (
        "| `divprune` | 320 | chartqa | 37.9 | not run |  | `lmms-eval --model tokensieve" in text
    )
    assert f"pretrained={MODEL},method=divprune,keep=0.1111`" in text
    assert {row.benchmark for row in rows} <= set(METRICS)
    main([str(tmp_path / "none")])
    assert f"0 of {len(rows)} were run." in capsys.readouterr().out


def test_fused_models_of_ones_own_and_videos(tmp_path, capsys):
    told = {
        "config": {"model_args": {"pretrained": "runs/fused", "method": "full"}},
        "results": {"gqa": {"exact_match,none": 0.62}, "pope": {"pope_f1_score,none": 0.87}},
    }
    (tmp_path / "1_results.json").write_text(json.dumps(told))
    found = [one for one in beside(tmp_path, {"mbtf-stf": "runs/fused"}) if one.ours is not None]
    assert [(one.name, one.benchmark, one.paper) for one in found] == [
        ("mbtf stf", "gqa", 61.9), ("mbtf stf", "pope_f1", 86.0)
    ]  # fmt: skip
    main([str(tmp_path), "--model", "mbtf-stf=runs/fused"])
    said = capsys.readouterr().out
    assert "| `full` (mbtf stf) | 144 | gqa | 61.9 | 62.0 | +0.1 |" in said
    assert "method=selector,keep=0.1502,frames=8`" in said
    assert "| `yopo` (yopo) | not said | gqa | 61.6 | not run |  | not offered |" in said
    with pytest.raises(ConfigError, match="Name both"):
        main([str(tmp_path), "--model", "mbtf-stf"])


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "1_results.json").write_text("{}")
    with pytest.raises(InputError, match="Expected results of lmms-eval"):
        list(beside(tmp_path))
