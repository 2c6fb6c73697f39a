"""Measured rates, and the page of figures they go into."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lab.studies.training import page as training_page
from lab.studies.training import rates
from tokensieve.cost.encoders import SHAPES, encode_flops, encoder_shape
from tokensieve.cost.recipes import recipe_of, training_shape
from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import ConfigError, InputError
from tokensieve.evaluate import records

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny(monkeypatch):
    """CLIP with two narrow layers, known by name."""
    small = TransformerShape(2, 32, 48, 4, 4, 8, gated=False)
    shape = replace(encoder_shape("clip-l-336"), name="tiny", transformer=small, rows=4, cols=4)
    monkeypatch.setitem(SHAPES, "tiny", shape)
    return shape


def test_the_command_writes_rates_that_follow_from_its_times(tiny, tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        rates.main(["--shapes", "tiny", "--crops", "2", "--repeats", "1", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(before)
    record = records.read(tmp_path / "tiny--cpu.json")
    encode, default, adaptive = record["rows"]
    assert [row["what"] for row in record["rows"]] == ["encode", "default", "adaptive"]
    # a pass is of two crops; a step of 32 crops is 16 passes and one update
    assert encode["crops_per_s"] == pytest.approx(2 / encode["pass_s"][0], rel=0.05)
    step = 16 * default["pass_s"][0] + default["update_s"][0]
    assert default["crops_per_s"] == pytest.approx(32 / step, rel=0.05)
    assert encode["flops_per_s"] == pytest.approx(encode_flops(tiny) * encode["crops_per_s"])
    sizes = training_shape(tiny, recipe_of("adaptive"))
    assert adaptive["flops_per_crop"] == sizes.step_flops()
    assert adaptive["parameters"] == sizes.parameters()
    assert encode["peak_bytes"] > 10**7
    assert {"commit", "versions", "machine", "identity", "clock"} <= set(record)
    assert capsys.readouterr().out.count("crops/s") == 3


@pytest.mark.slow
def test_half_precision_trains_too(tiny):
    record = rates.measure(tiny, device="cpu", dtype="bfloat16", crops=1, repeats=1)
    assert [row["crops_per_s"] > 0 for row in record["rows"]] == [True] * 3


def test_a_device_that_is_not_there_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, message in (("cuda", "Expected a CUDA device. Got none"),
                            ("meta", "Expected the device cpu or cuda. Got 'meta'")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            rates.measure(tiny, device=device, dtype="float32", crops=1, repeats=1)


def _record(device="cpu", accelerator=None, rate=10.0):
    rows = [{"what": what, "crops_per_s": rate, "flops_per_s": 1e9, "peak_bytes": 10**9}
            for what in ("encode", "default", "adaptive")]  # fmt: skip
    return {"config": {"shape": "clip-l-336", "device": device, "dtype": "float32"},
            "accelerator": accelerator, "machine": {"cpu": "Slow CPU"}, "threads": 1,
            "rows": rows}  # fmt: skip


def _cells(block, table, row):
    """The row that begins with `row` of the table whose first head begins with `table`."""
    lines = block.split(f"| {table}", 1)[1].split("\n")
    heads = [cell.strip() for cell in lines[0].split("|")][1:-1]
    found = next(line for line in lines if line.startswith(f"| {row} |"))
    return dict(zip(heads, [cell.strip() for cell in found.split("|")][2:-1], strict=True))


def test_hours_are_crops_over_the_measured_rate():
    block = training_page.block([_record()])
    cpu = "measured on Slow CPU, 1 thread, float32"
    cells = _cells(block, "encode once, hours", "clip-l-336")
    assert cells[cpu] == "3.7"  # 133,000 / 10 / 3600
    assert cells["A100-80G, estimated"] == "0.13"  # 133,000 * 382e9 / (0.35 * 312e12) / 3600
    assert _cells(block, "encode once, hours", "clip-l-336-next")[cpu] == "18"  # five crops each
    assert _cells(block, "encode once, hours", "qwen2.5-vl")[cpu] == "not run"
    assert _cells(block, "train `adaptive`", "clip-l-336")[cpu] == "369"  # 100 epochs
    assert _cells(block, "train `default`", "clip-l-336-next")[cpu] == "27"  # 30,000 x 32 crops


def test_a_measured_gpu_takes_the_place_of_its_estimate():
    gpu = _record("cuda", "NVIDIA A100-SXM4-80GB", 1000.0)
    cells = _cells(training_page.block([_record(), gpu]), "encode once, hours", "clip-l-336")
    assert cells["measured on NVIDIA A100-SXM4-80GB, float32"] == "0.037"
    assert "A100-80G, estimated" not in cells
    assert "H100 SXM, estimated" in cells
    assert next(iter(cells)).startswith("measured on NVIDIA")


def test_without_records_the_page_names_the_command():
    assert (
        "Not run. They are made by `python -m lab.studies.training.rates`"
        in training_page.block([])
    )


def test_only_what_stands_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    begin, end = "<!-- training:begin -->", "<!-- training:end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    training_page.main(["--page", str(page), "--rates", str(tmp_path)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    assert "siglip-so400m-384" in text
    page.write_text("no markers")
    with pytest.raises(InputError, match="Expected the lines <!-- training:begin -->"):
        training_page.main(["--page", str(page), "--rates", str(tmp_path)])


def test_docs_training_is_what_the_command_writes():
    text = (ROOT / "docs" / "guides" / "training-costs.md").read_text()
    block = training_page.block(list(records.read_all(ROOT / "results" / "rates")))
    assert f"<!-- training:begin -->\n{block}\n<!-- training:end -->" in text, (
        "docs/guides/training-costs.md is stale: run `python -m lab.studies.training.page`"
    )
