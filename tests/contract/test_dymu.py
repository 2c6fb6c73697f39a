"""DyMU's thresholds: measured on pictures, bound to an encoder."""

from __future__ import annotations

import json
from statistics import mean

import pytest
import torch

from families.tiny import build
from tokensieve.data.sources import Listing, open_source
from tokensieve.errors import BudgetError, EncoderMismatchError, UnsupportedError, WeightsError
from tokensieve.hf.encoder.dymu import calibrate_dymu
from tokensieve.hf.load import load_model
from tokensieve.hf.sieve import compress
from tokensieve.nn.thresholds import Thresholds
from tokensieve.train.calibration import dymu as command


def counts(model, inputs, **options) -> list[int]:
    short = compress(model, inputs, "dymu", **options)
    prompts = short.report.calls[0].prompts
    return [len(image.crops[0].kept) for prompt in prompts for image in prompt.images]


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_pictures_calibrated_on_keep_the_budget_on_average(family):
    tiny = build(family)
    inputs = tiny.inputs([8])
    table = calibrate_dymu(tiny.model, [inputs], shares=(0.1, 0.5, 0.75))
    assert table.shares == (0.5, 0.75)  # halving at two or three layers does not reach a tenth
    for share in table.shares:
        short = compress(tiny.model, inputs, "dymu", share, thresholds=table)
        images = short.report.calls[0].prompts[0].images
        crops = [crop for image in images for crop in image.crops]
        kept, asked = (mean(sizes) for sizes in (
            [len(crop.kept) for crop in crops], [share * int(crop.valid.sum()) for crop in crops]
        ))  # fmt: skip
        assert abs(kept - asked) < 0.1 * asked
        assert len({len(crop.kept) for crop in crops}) > 1


def test_nanos_thresholds_ship():
    loaded = load_model("nano")
    listing = Listing([open_source("synth:mix:12")])
    inputs = next(command.prompts(loaded, listing, 12, 12))
    for keep in (0.2, 0.5):
        kept = counts(loaded.model, inputs, keep=keep)
        assert abs(mean(kept) - 256 * keep) < 0.25 * 256 * keep
        assert len(set(kept)) > 6
        assert all(128 * keep <= count <= 512 * keep for count in kept)


def test_through_a_file_and_the_command(tmp_path, capsys):
    out = tmp_path / "thresholds.json"
    arguments = ["--model", "nano", "--images", "synth:mix:4", "--batch", "2", "--out", str(out)]
    assert command.main(arguments) == 0
    assert "keep 0.5: cosines above" in capsys.readouterr().out
    read = Thresholds.load(out)
    read.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()
    loaded = load_model("nano")
    inputs = next(command.prompts(loaded, Listing([open_source("synth:mix:2")]), 2, 2))
    options = {"keep": 0.3, "thresholds": str(out)}
    assert counts(loaded.model, inputs, **options) == counts(
        loaded.model, inputs, keep=0.3, thresholds=read
    )


def test_a_file_of_another_encoder_is_refused(tmp_path):
    llava, onevision = build("llava"), build("llava_onevision")
    table = calibrate_dymu(llava.model, [llava.inputs([2])], shares=(0.5,))
    table.save(tmp_path / "llava.json")
    with pytest.raises(EncoderMismatchError, match="file of thresholds was trained for an encoder"):
        compress(
            onevision.model, onevision.inputs([1]), "dymu", 0.5,
            thresholds=tmp_path / "llava.json",
        )  # fmt: skip
    with pytest.raises(EncoderMismatchError, match=r"Shipped: dymu-nano\. Pass thresholds=FILE"):
        compress(llava.model, llava.inputs([1]), "dymu", 0.5)


def test_damaged_files_are_named(tmp_path):
    llava = build("llava")
    table = calibrate_dymu(llava.model, [llava.inputs([2])], shares=(0.5,))
    table.save(tmp_path / "good.json")
    good = json.loads((tmp_path / "good.json").read_text())
    short = {**good, "values": [row[:1] for row in good["values"]]}
    broken = {
        "half": json.dumps(good)[:40],
        "list": "[]",
        "short": json.dumps(short),
        "falling": json.dumps({**good, "shares": [0.5, 0.4], "values": good["values"] * 2}),
        "word": json.dumps({**good, "values": [["high", "low"]]}),
    }
    for name, text in broken.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        with pytest.raises(WeightsError, match="Expected"):
            compress(llava.model, llava.inputs([1]), "dymu", 0.5, thresholds=str(path))
    with pytest.raises(WeightsError, match=r"missing\.json"):
        Thresholds.load(tmp_path / "missing.json")


def test_what_cannot_be_calibrated_is_said():
    fused, llava = build("fused_llava"), build("llava")
    with pytest.raises(UnsupportedError, match="clip_vision_model"):
        calibrate_dymu(fused.model, [fused.inputs([1])])
    with pytest.raises(BudgetError, match="at most half"):
        calibrate_dymu(llava.model, [llava.inputs([1])], shares=(0.05,))
    assert torch.is_grad_enabled()
