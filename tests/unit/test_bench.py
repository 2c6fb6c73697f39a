"""Times, memory and ratios of models that run, at the shapes of presets."""

from dataclasses import replace

import pytest
import torch

from tokensieve.cost.flops import prefill_flops
from tokensieve.cost.models import PRESETS
from tokensieve.cost.random_vlm import cut_to, random_inputs, random_vlm
from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.evaluate import bench as room
from tokensieve.evaluate.ask import Settings
from tokensieve.evaluate.bench import Bench, bench, check_tokens, layers_of, record_of
from tokensieve.evaluate.cells import Cell
from tokensieve.hf.encoder.encode import encode

CPU = torch.device("cpu")
LLM = TransformerShape(4, 64, 96, 4, 4, 16, vocab=2000)


def small(name):
    """The preset with narrow layers, its crops and merging kept, a smaller picture where it may."""
    shape = PRESETS[name]
    e = shape.encoder
    narrow = replace(e.transformer, width=32, ffn=48, heads=2, kv_heads=2, head_dim=16)
    sizes = {"rows": 4, "cols": 4} if e.crops == 1 and e.merge == 1 else {"rows": 8, "cols": 8}
    encoder = replace(e, transformer=narrow, crops=min(2, e.crops), embed_width=64, **sizes)
    grouped = shape.llm.kv_heads < shape.llm.heads
    return replace(shape, encoder=encoder, llm=replace(LLM, kv_heads=2 if grouped else 4))


@pytest.mark.parametrize(
    "name", ["llava-1.5-7b", "llava-onevision-7b", "internvl3-2b", "qwen2.5-vl-7b", "qwen3-vl-8b"]
)
def test_a_preset_is_built_with_its_tokens(name):
    shape = cut_to(small(name), 2)
    model = random_vlm(shape, torch.float32, CPU)
    assert replace(TransformerShape.of_llm(model.config), gated=True) == shape.llm
    tower = TransformerShape.of_encoder(model.config)
    layers = 8 if name == "qwen2.5-vl-7b" else 2  # seven windowed ones and a full one
    assert (tower.layers, tower.width, tower.ffn) == (layers, 32, 48)
    inputs = random_inputs(shape, 2, 20, model)
    assert inputs["input_ids"].shape == (2, shape.tokens + 20)
    encoded = encode(model, inputs, run=False)
    assert sum(len(one.origin_N) for one in encoded.packings) == 2 * shape.tokens


def test_windowed_layers_stand_beside_full_ones_as_in_the_whole():
    """Of Qwen2.5-VL's 32 layers 7, 15, 23 and 31 see all."""
    for asked, layers, full in ((1, 8, [7]), (9, 16, [7, 15]), (99, 32, [7, 15, 23, 31])):
        shape = cut_to(small("qwen2.5-vl-7b"), asked)
        vision = random_vlm(shape, torch.float32, CPU).config.vision_config
        assert (vision.depth, list(vision.fullatt_block_indexes)) == (layers, full)
        assert (shape.encoder.transformer.layers, shape.encoder.full_layers) == (layers, len(full))


def test_ratios_are_of_what_was_measured(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", small("llava-next-7b"))
    one = Bench.preset("tiny", tokens=None, text=20, batch=2, layers=2, device=CPU)
    assert (one.of, one.cut) == ((12.0, 2.0), True)
    cells = [Cell("selector", 0.5), Cell("stride", 16), Cell("fastv", 0.5), Cell("none", 0.0)]
    full, selector, stride, inside, none = bench(one, cells, Settings(), new=2, rounds=1)
    assert (full.tokens, selector.tokens, stride.tokens) == (128, 64, 32)
    assert full.ideal == 1
    llm = replace(LLM, layers=2)
    assert selector.ideal == prefill_flops(llm, 148) / prefill_flops(llm, 84)
    assert selector.measured == full.ms["prefill"] / sum(
        selector.ms[stage] for stage in ("prefill", "select")
    )
    assert selector.whole == sum(full.ms.values()) / sum(selector.ms.values())
    assert min(selector.ms.values()) > 0
    assert "--layers all" in inside.refused
    assert (none.tokens, none.refused) == (0, "")
    assert none.ideal == prefill_flops(llm, 148) / prefill_flops(llm, 20)
    for moved in (Settings(layer=1), Settings(by_method={"stride": {"site": "patches"}})):
        _, refused = bench(one, [Cell("stride", 16)], moved, new=1, rounds=1)
        assert "--layers all" in refused.refused
    record = record_of(one, [full, inside], rounds=1)
    assert (record["config"]["batch"], record["gpu"], len(record["rows"])) == (2, None, 2)


def test_layers_that_run_stand_for_the_others(monkeypatch):
    """A clock in their place: the encoder's 7 ms of 2 layers are 84 of 24, a picture 42."""
    monkeypatch.setitem(PRESETS, "tiny", small("llava-next-7b"))
    one = Bench.preset("tiny", tokens=None, text=20, batch=2, layers=2, device=CPU)
    told = room._scaled(one, {"encode": 7.0, "select": 3.0, "prefill": 5.0})
    assert told == {"encode": 42.0, "select": 1.5, "prefill": 5.0, "decode": 0.0}


def test_the_whole_model_may_drop_tokens_inside(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", small("llava-1.5-7b"))
    one = Bench.preset("tiny", tokens=32, text=9, batch=1, layers=None, device=CPU)
    full, inside = bench(one, [Cell("fastv", 0.5)], Settings(), new=1, rounds=1)
    assert (full.tokens, inside.tokens, inside.refused) == (32, 20, "")  # half behind layer 1 of 4


def test_what_cannot_be_measured_is_told(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", small("llava-1.5-7b"))
    told = {"tokens": None, "text": 9, "layers": 1, "device": CPU}
    one = Bench.preset("tiny", batch=1, **told)
    with pytest.raises(ConfigError, match="rounds and new tokens"):
        bench(one, [], Settings(), new=1, rounds=0)
    with pytest.raises(ConfigError, match="batch and text of 1"):
        Bench.preset("tiny", batch=0, **told)
    with pytest.raises(ConfigError, match="at least 1 layer"):
        Bench.preset("tiny", batch=1, **{**told, "layers": 0})
    other = replace(small("llava-1.5-7b"), encoder=replace(one_encoder(), model_type="mine"))
    with pytest.raises(UnsupportedError, match="Measure a checkpoint"):
        random_vlm(other, torch.float32, CPU)
    with pytest.raises(ConfigError, match="Leave them out"):
        check_tokens("nano", 64, None)
    with pytest.raises(ConfigError, match="--layers N or 'all'"):
        layers_of("some", CPU)
    assert (layers_of(None, CPU), layers_of("all", CPU), layers_of("3", CPU)) == (2, None, 3)
    assert check_tokens("tiny", 64, "2")


def one_encoder():
    return small("llava-1.5-7b").encoder
