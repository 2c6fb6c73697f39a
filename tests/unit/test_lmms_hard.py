"""VTC-Bench's filter over logs in lmms-eval's layout."""

import json

import pytest

from tokensieve.errors import InputError
from tokensieve.evaluate.lmms.hard import hard_of, logged, main


def run(folder, number, method, scores, keep=0.2):
    folder.mkdir(exist_ok=True)
    told = {"config": {"model_args": f"pretrained=m,method={method},keep={keep}"}}
    (folder / f"2026_{number}_results.json").write_text(json.dumps(told))
    rows = [{"doc_id": n, "input": "x", "target": "y", "relaxed_overall": score}
            for n, score in enumerate(scores)]  # fmt: skip
    text = "\n".join(map(json.dumps, rows))
    (folder / f"2026_{number}_samples_chartqa.jsonl").write_text(text)


def test_only_what_a_smaller_picture_does_not_answer(tmp_path, capsys):
    run(tmp_path / "m", 1, "full", [1, 1, 1, 0])
    run(tmp_path / "m", 2, "downsample", [1, 0, 0, 0])
    run(tmp_path / "m", 3, "selector", [0, 1, 0, 1])
    run(tmp_path / "m", 4, "divprune", [1, 1, 1, 1], keep=0.3)  # no downsample at .3
    (one,) = hard_of(logged(tmp_path))
    assert (one.task, one.method, one.number, one.asked, one.score) == (
        "chartqa", "selector", 2, 4, 0.5
    )  # fmt: skip
    main([str(tmp_path)])
    assert "| m | chartqa | `selector` | 0.2 | 2 | 4 | 50.0 |" in capsys.readouterr().out


def test_what_is_missing_or_wrong_is_told(tmp_path):
    with pytest.raises(InputError, match="--log_samples"):
        main([str(tmp_path)])
    run(tmp_path / "m", 1, "full", [{"pred": 1}])
    with pytest.raises(InputError, match="all questions together"):
        logged(tmp_path)
