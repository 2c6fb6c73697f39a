"""Training under a sieve: what a step leaves out, and that a model learns to read what is left."""

import json
from contextlib import contextmanager
from statistics import mean

import pytest
import torch

from tokensieve.errors import BudgetError, ConfigError, EncoderMismatchError, UnknownNameError
from tokensieve.hf.fused import fuse
from tokensieve.hf.load import load_model
from tokensieve.hf.sieve import sieve
from tokensieve.methods.registry import method_class, method_names
from tokensieve.train.fusion.budgets import SieveConfig, parse_budgets
from tokensieve.train.fusion.model import projector_of
from tokensieve.train.fusion.run import Data, train_fusion
from tokensieve.train.fusion.sieving import Sieving
from toys.fusion_toys import plain, rows_of, toy, toy_recipe, write_rows


@pytest.fixture
def data(tmp_path):
    return Data(*write_rows(tmp_path, rows_of()))


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_budgets_between_two_follow_from_seed_and_step():
    found = parse_budgets("0.25..0.75")
    drawn = [found.at(3, step, 1000) for step in range(1000)]
    assert drawn == [found.at(3, step, 1000) for step in range(1000)]
    assert len(set(drawn)) == 1000
    assert 0.25 <= min(drawn) < 0.26
    assert 0.74 < max(drawn) <= 0.75
    assert abs(mean(drawn) - 0.5) < 0.02
    assert drawn[:5] != [found.at(4, step, 1000) for step in range(5)]
    assert found.at(3, 7, 1000) == found.at(3, 7, 8)  # how long it goes on changes nothing


def test_whole_numbers_and_lists_are_drawn_alike():
    counts = {parse_budgets("3..6").at(0, step, 99) for step in range(99)}
    assert counts == {3, 4, 5, 6}
    drawn = [parse_budgets("64,144,256").at(0, step, 300) for step in range(300)]
    assert all(70 < drawn.count(one) < 130 for one in (64, 144, 256))


def test_parts_follow_each_other():
    found = parse_budgets("0.125>0.5>1")
    assert [found.at(0, step, 7) for step in range(7)] == [0.125] * 3 + [0.5] * 2 + [1.0] * 2
    config = SieveConfig("fastv", "0.5>0.5>1", "1>2>none")
    assert config.layers == (1, 2, None)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("0.1..64", ConfigError, "Give two shares, or two numbers"),
        ("0.5..0.1", ConfigError, "Put the smaller one first"),
        ("0.1..0.2..0.3", ConfigError, "Give two shares"),
        ("0.5,", ConfigError, "Expected sieve.keep as"),
        ("0..1", BudgetError, "Got 0"),
        ("2.5", BudgetError, "Did you mean"),
        ("half", BudgetError, "Got 'half'"),
        ("", ConfigError, "Expected sieve.keep as"),
    ],
)
def test_other_budgets_are_refused(text, error, message):
    with pytest.raises(error, match=message):
        parse_budgets(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sieve.keep=0.5"], "Expected a method beside sieve.keep=0.5"),
        (["sieve.layer=2"], "Expected a method beside sieve.layer"),
        (["sieve.positions=renumber"], "Expected a method beside sieve.positions"),
        (["sieve.method=divprun", "sieve.keep=0.5"], "Did you mean 'divprune'"),
        (["sieve.method=divprune"], "Expected a budget for 'divprune'"),
        (["sieve.method=fastv", "sieve.keep=0.5", "sieve.layer=two"], "Expected sieve.layer as"),
        (["sieve.method=selector", "sieve.keep=0.5", "sieve.options=rules=top"], "Did you mean"),
        (["sieve.method=selector", "sieve.keep=0.5", "sieve.options=rule=best"], "rule"),
        (["sieve.method=random", "sieve.keep=0.5", "sieve.positions=odd"], "sieve.positions"),
    ],
)
def test_a_recipe_says_what_is_wrong_before_a_model_is_there(settings, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        toy_recipe("stage2", *settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sieve.method=fastv", "sieve.keep=0.5", "sieve.layer=1"], "train.checkpointing=false"),
        (["sieve.method=fastv", "sieve.keep=0.5", "sieve.layer=2",
          "train.checkpointing=false"], "layer"),
        (["sieve.method=divprune", "sieve.keep=0.5..1", "sieve.layer=9",
          "train.checkpointing=false"], "layer"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_is_refused_before_anything_is_written(
    settings, message, data, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        train_fusion(toy(), data, toy_recipe("stage2", *settings), tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("preset", ["stage2", "stage2-lora"])
def test_the_loss_falls_and_the_budget_varies(preset, data, tmp_path):
    recipe = toy_recipe(
        preset, "train.steps=12", "train.lr=0.02", "train.llm_lr=0.02", "sieve.method=divprune",
        "sieve.keep=0.25..1",
    )  # fmt: skip
    out = train_fusion(toy(), data, recipe, tmp_path / "o", seed=1)
    lines = logged(tmp_path / "o")
    assert mean(line["loss"] for line in lines[-3:]) < 0.8 * mean(
        line["loss"] for line in lines[:3]
    )
    assert [line["keep"] for line in lines] == [
        recipe.sieve.budgets.at(1, n, 12) for n in range(12)
    ]
    shares = {line["read"] for line in lines}  # of 4 tokens
    assert len(shares) >= 3
    assert shares <= {0.25, 0.5, 0.75, 1.0, None}  # None: a step without pictures
    stored = json.loads((tmp_path / "o" / "train.json").read_text())
    assert stored["recipe"]["sieve"] == recipe.sieve.to_dict()
    assert load_model(str(out)).model.config.model_type == "fused_llava"


def test_what_was_left_out_was_not_read(data, tmp_path, monkeypatch):
    """Under `none` a picture's tokens cannot teach the projector anything; and a sieve that does
    nothing, which is the broken variant, is told from one that does."""
    frozen = toy_recipe("stage1", "data.form=chat", 'sieve.method="none"', "train.steps=2")
    before = projector_of(toy().model).state_dict()
    loaded = toy()
    train_fusion(loaded, data, frozen, tmp_path / "none")
    for name, value in projector_of(loaded.model).state_dict().items():
        assert torch.equal(value, before[name])
    assert {line["read"] for line in logged(tmp_path / "none")} == {0}

    halved = toy_recipe("stage2", "sieve.method=stride", "sieve.keep=0.5")
    train_fusion(toy(), data, halved, tmp_path / "half")
    train_fusion(toy(), data, toy_recipe("stage2"), tmp_path / "plain")
    losses = [[line["loss"] for line in logged(tmp_path / n)] for n in ("half", "plain")]
    assert losses[0] != losses[1]
    assert "keep" not in logged(tmp_path / "plain")[0]

    monkeypatch.setattr(Sieving, "keep", lambda *_: 1.0)
    train_fusion(toy(), data, halved, tmp_path / "broken")
    assert [line["loss"] for line in logged(tmp_path / "broken")] == losses[1]


def test_a_run_cut_off_goes_on_with_the_same_budgets(data, tmp_path):
    from tokensieve.data.progress import Stopped
    from tokensieve.train.fusion.trainer import Ends

    recipe = toy_recipe("stage2", "sieve.method=random", "sieve.keep=0.25..1")
    train_fusion(toy(), data, recipe, tmp_path / "whole")
    known = Ends.on_step_end

    def at_third(self, args, state, control, **more):
        self.stop = lambda: state.global_step == 3
        known(self, args, state, control, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ends, "on_step_end", at_third)
        patch.setattr("tokensieve.train.fusion.run.export", None, raising=False)
        patch.setattr("tokensieve.train.fusion.export.export", stopped(Stopped))
        with pytest.raises(Stopped):
            train_fusion(toy(), data, recipe, tmp_path / "cut")
    train_fusion(toy(), data, recipe, tmp_path / "cut")
    for name in ("model/model.safetensors", "projector.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    told = [
        [(line["step"], line["keep"]) for line in logged(tmp_path / n)] for n in ("cut", "whole")
    ]
    assert told[0] == told[1]
    other = toy_recipe("stage2", "sieve.method=random", "sieve.keep=0.5..1")
    with pytest.raises(ConfigError, match=r"It differs in recipe\.sieve\.keep"):
        train_fusion(toy(), data, other, tmp_path / "cut")


def test_one_model_for_several_numbers_of_tokens(data, tmp_path):
    """TokenFLEX: pooled to a number drawn anew, then a SwiGLU; all numbers are read afterwards."""
    base = plain()
    made = fuse(base.model, base.processor, blocks=1, kernel=1, kind="swiglu")
    recipe = toy_recipe(
        "stage2", "train.steps=12", "train.lr=0.02", "train.llm_lr=0.02",
        "sieve.method=tokenflex", "sieve.keep=4,9,16",
    )  # fmt: skip
    out = train_fusion(made, data, recipe, tmp_path / "o")
    lines = logged(tmp_path / "o")
    assert {line["keep"] for line in lines} == {4, 9, 16}
    assert mean(x["loss"] for x in lines[-3:]) < 0.8 * mean(x["loss"] for x in lines[:3])
    model = load_model(str(out)).model
    assert model.config.fusion.kind == "swiglu"
    inputs = {k: v for k, v in batch().items() if k != "labels"}
    for count in (4, 9, 16):
        with sieve(model, "tokenflex", keep=count) as report:
            assert torch.isfinite(model(**inputs).logits).all()
        assert report.kept_tokens == count


def test_stages_from_heavy_compression_to_none(data, tmp_path):
    """LLaVolta: inside the LLM, less and less, at the end nothing is left out."""
    recipe = toy_recipe(
        "stage2", "train.steps=6", "train.checkpointing=false", "sieve.method=llavolta",
        "sieve.keep=0.25>0.5>1", "sieve.layer=1>1>none",
    )  # fmt: skip
    train_fusion(toy(), data, recipe, tmp_path / "o")
    lines = logged(tmp_path / "o")
    assert [line["keep"] for line in lines] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert [line["read"] for line in lines if line["read"]] == [
        line["keep"] for line in lines if line["read"]
    ]
    plain_run = toy_recipe("stage2", "train.steps=6", "train.checkpointing=false")
    train_fusion(toy(), data, plain_run, tmp_path / "plain")
    assert logged(tmp_path / "plain")[0]["loss"] != lines[0]["loss"]


def stopped(error):
    def stop(*_):
        raise error("step 3 of 5")

    return stop


def test_chance_of_a_method_differs_from_step_to_step(monkeypatch):
    seeds = []

    @contextmanager
    def watched(model, method, *given, **named):
        seeds.append(method.seed)
        with sieve(model, method, *given, **named) as report:
            yield report

    monkeypatch.setattr("tokensieve.train.fusion.sieving.sieve", watched)
    sieving = Sieving(plain().model, SieveConfig("random", "0.5"), 0, 9)
    for step in (0, 1, 1):
        with sieving.at(step, batch()):
            pass
    assert seeds[0] != seeds[1] == seeds[2]


def batch():
    ids = torch.tensor([[1, *[4] * 16, 20, 30, 40, 2]])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False,
        "labels": ids.masked_fill(ids == 4, -100),
        "pixel_values": torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)),
    }  # fmt: skip


@pytest.mark.parametrize("name", method_names())
def test_every_method_lets_the_projector_learn(name):
    """Selection and merging hand gradients on, wherever they act."""
    cls, loaded = method_class(name), plain()
    if cls.trained:
        pytest.skip("has no weights for this encoder")
    layer = "1" if cls.site == "llm" else None
    keep = "0.5" if cls.budgeted else None
    try:
        sieving = Sieving(loaded.model, SieveConfig(name, keep, layer), 0, 9)
    except EncoderMismatchError:
        pytest.skip("has no calibration for this encoder")
    loaded.model.train()
    with sieving.at(0, batch()):
        loss = loaded.model(**batch()).loss
    loss.backward()
    assert sieving.read < sieving.seen or name in ("full", "todre-llm")
    grads = [p.grad for p in projector_of(loaded.model).parameters()]
    if name == "none":
        assert all(g is None or not g.any() for g in grads)
        return
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in grads)
