"""Whatever is handed in, wrong use is an error of ours: what was expected, what was got."""

from __future__ import annotations

from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from families.methods import ByNorm
from families.tiny import build
from tokensieve.errors import BudgetError, ConfigError, TokensieveError
from tokensieve.evaluate.ask import Settings, ask
from tokensieve.hf.fused import fuse
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.models.nano import load_nano
from tokensieve.hf.search import search_schedule
from tokensieve.hf.sieve import compress, encode, sieve
from tokensieve.methods.registry import get_method

NAN, TINY = float("nan"), build("llava")
MODEL, INPUTS = TINY.model, TINY.inputs([1])
PICTURE = Image.new("RGB", (32, 32))
PROCESSOR = SimpleNamespace(tokenizer=object(), image_processor=object())


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Without the checks of annotations that the test suite puts on every function."""
    was = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was)


class Odd:
    """Nothing that anyone expects."""


def refuses(call, *args, **options):
    with pytest.raises(TokensieveError) as caught:
        call(*args, **options)
    said = str(caught.value)
    assert ("Expected" in said and "Got" in said) or "Unknown" in said or "has no option" in said
    assert len(said) < 1500
    assert said.count(". ") or said.endswith(".")


def enter(*args, **options):
    with sieve(*args, **options):
        pass


def generate(inputs):
    with sieve(MODEL, "cdpruner", 0.4):
        MODEL.generate(**inputs, max_new_tokens=1)


def forward(inputs):
    with sieve(MODEL, "cdpruner", 0.4):
        MODEL(**inputs)


MODELS = {
    "none": None, "name": "llava", "number": 3, "processor": PROCESSOR, "config": MODEL.config,
    "class": type(MODEL), "list": [MODEL], "pair": (MODEL, PROCESSOR), "dict": {},
    "loaded": Loaded("tiny", MODEL, PROCESSOR), "module": torch.nn.Linear(2, 2),
    "parallel": torch.nn.DataParallel(MODEL), "compiled": torch.compile(MODEL),
    "headless": MODEL.model, "llm": MODEL.model.language_model, "tower": MODEL.model.vision_tower,
}  # fmt: skip
MODEL_CALLS = {
    "sieve": lambda model: enter(model, "divprune"),
    "compress": lambda model: compress(model, INPUTS, "divprune"),
    "encode": lambda model: encode(model, INPUTS),
    "search": lambda model: search_schedule(model, "fastv", [INPUTS], 0.5),
    "fuse": lambda model: fuse(model, None, blocks=1),
}


@pytest.mark.parametrize("call", MODEL_CALLS)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_is_none(model, call):
    refuses(MODEL_CALLS[call], MODELS[model])


WORDS = (None, 3, True, "kep", [], ["keep"], {}, Odd(), torch.ones(2), np.array(["keep", "crop"]))
ARGUMENTS = {
    "method": (
        None, 3, NAN, "", "divprun", b"divprune", ["divprune"], ("divprune", "fastv", "fastv"), [],
        (1, 2), ("divprune", None), {"divprune": 1}, ByNorm, Odd(), torch.ones(2), {"a"}, True,
    ),
    "keep": (
        None, "half", "0.4", NAN, float("inf"), True, False, 0, -1, -0.5, 1.5, 1j, [0.4], {}, Odd(),
        torch.tensor(0.4), np.array([0.4]), np.array(0.4), np.bool_(True), np.float32(NAN),
        -(10**400),
    ),
    "positions": WORDS,
    "pool": WORDS,
    "newlines": WORDS,
    "layer": (
        "x", True, False, 1.5, NAN, [], [1], {}, {1: "x"}, {"1": 0.5}, {True: 0.5}, {1: None},
        {1.5: 0.5}, {0: 0.5}, {99: 0.5}, {None: 0.5}, {1: torch.tensor(0.5)}, -1, 0, 99, Odd(),
        torch.tensor(1), np.array([1]), np.int64(99),
    ),
    "recycle": ("yes", "False", None, 1, 0, [], torch.tensor(True), Odd()),
    "cover": (-1, None, "2", 1.5, True, NAN, [], torch.tensor(2), 10**30, Odd()),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, i) for name, values in ARGUMENTS.items() for i in range(len(values))],
)
def test_an_argument_that_is_none(name, number):
    wrong = {name: ARGUMENTS[name][number]}
    refuses(enter, MODEL, **{"method": "divprune", "keep": 0.4, **wrong})
    if name == "layer":
        refuses(enter, MODEL, **{"method": "fastv", "keep": 0.4, **wrong})
        return
    refuses(compress, MODEL, INPUTS, **{"method": "divprune", "keep": 0.4, **wrong})
    if name == "keep":
        refuses(enter, MODEL, ("divprune", "fastv"), wrong["keep"], layer=1)
        refuses(enter, MODEL, ("divprune", "fastv"), (wrong["keep"], 0.2), layer=1)


def test_numbers_of_numpy_are_numbers():
    for keep in (np.float32(0.5), np.float64(0.5), np.int64(8)):
        assert compress(MODEL, INPUTS, ByNorm(), keep).report.kept_tokens == 8
    with sieve(MODEL, "fastv", 0.5, layer=np.int64(1)) as report:
        MODEL.generate(**INPUTS, max_new_tokens=1)
    assert report.kept_tokens == 8


@pytest.mark.parametrize(
    ("method", "options"),
    [("selector", {"rule": 5}), ("selector", {"rule": []}), ("selector", {"weights": 3}),
     ("random", {"seed": "x"}), ("random", {"seed": None}), ("random", {"seed": 1.5}),
     ("random", {"seed": True}), ("random", {"seed": 10**400}), ("random", {"sed": 1})],
    ids=str,
)  # fmt: skip
def test_an_option_that_is_none(method, options):
    refuses(enter, MODEL, method, 0.4, **options)


def without(*names):
    return {name: value for name, value in INPUTS.items() if name not in names}


IDS, MASK = INPUTS["input_ids"], INPUTS["attention_mask"]
NO_INPUTS = {"none": None, "list": [1], "name": "x", "ids": IDS, "odd": Odd(), "number": 3,
             "numbered": {3: 4}}  # fmt: skip
BAD_INPUTS = {
    "nothing": {}, "ids-list": {"input_ids": IDS.tolist()}, "ids-numpy": {"input_ids": IDS.numpy()},
    "ids-flat": {"input_ids": IDS[0]}, "ids-float": {"input_ids": IDS.float()},
    "ids-text": {"input_ids": "x"}, "ids-empty": {"input_ids": IDS[:0]},
    "pixels-numpy": {"pixel_values": INPUTS["pixel_values"].numpy()},
    "pixels-numpy-shape": {"pixel_values": np.zeros((2, 2))},
    "pixels-flat": {"pixel_values": torch.zeros(3, 3)},
    "pixels-vector": {"pixel_values": torch.zeros(3)},
    "pixels-grey": {"pixel_values": torch.zeros(1, 1, 24, 24)},
    "pixels-size": {"pixel_values": torch.zeros(1, 3, 25, 31)},
    "pixels-picture": {"pixel_values": PICTURE}, "pixels-list": {"pixel_values": [PICTURE]},
    "pixels-path": {"pixel_values": "cat.png"},
    "pixels-many": {"pixel_values": torch.zeros(3, 3, 24, 24)},
    "pixels-none": {"pixel_values": torch.zeros(0, 3, 24, 24)},
    "mask-list": {"attention_mask": MASK.tolist()}, "mask-text": {"attention_mask": "x"},
    "mask-shape": {"attention_mask": torch.ones(1, 3).long()},
    "mask-4d": {"attention_mask": torch.ones(1, 1, 30, 30)},
    "labels-list": {"labels": [1]}, "labels-shape": {"labels": torch.ones(1, 2).long()},
    "text-mask": {"text_mask": "x"}, "cache": {"past_key_values": 3},
    "cache-tuple": {"past_key_values": ()},
    "encoded-text": {"pixel_values": None, "mm_encoder_outputs": "x"},
    "encoded-number": {"pixel_values": None, "mm_encoder_outputs": {"image": 3}},
    "encoded-tensor": {"pixel_values": None, "mm_encoder_outputs": {"image": torch.zeros(16, 32)}},
}  # fmt: skip


@pytest.mark.parametrize("inputs", NO_INPUTS)
def test_inputs_that_are_none(inputs):
    for method in ("divprune", "tome", "downsample"):
        refuses(compress, MODEL, NO_INPUTS[inputs], method)
    refuses(encode, MODEL, NO_INPUTS[inputs])


@pytest.mark.parametrize("inputs", BAD_INPUTS)
def test_an_input_that_is_none(inputs):
    whole = {**INPUTS, **BAD_INPUTS[inputs]} if inputs != "nothing" else {}
    refuses(generate, whole)
    refuses(forward, whole)
    if "cache" not in inputs:
        refuses(compress, MODEL, whole, "cdpruner")


@pytest.mark.parametrize("keys", ["x", 3, [None], [0.5], [True], [1, 2], Odd()])
def test_keys_that_are_none(keys):
    refuses(compress, MODEL, INPUTS, "random", keys=keys)


@pytest.mark.parametrize("name", [None, 3, True, "", [], Odd(), "/nowhere/at/all"])
def test_a_name_of_a_model_that_is_none(name):
    refuses(load_nano, name)
    refuses(load_model, name)


@pytest.fixture(scope="module")
def nano():
    return Loaded("nano", *load_nano())


@pytest.mark.parametrize(
    "wrong",
    [{"loaded": None}, {"loaded": MODEL}, {"pictures": None}, {"pictures": "x.png"},
     {"pictures": np.zeros(3)}, {"pictures": np.zeros((2, 2, 2, 2))}, {"pictures": []},
     {"pictures": [PICTURE, 3]},
     {"pictures": torch.zeros(7)}, {"question": None}, {"question": 3}, {"question": ["q"]},
     {"question": b"q"}, {"question": " "}, {"method": None}, {"method": 3}, {"method": ByNorm()},
     {"method": "strid"}, {"settings": None}, {"settings": {}}],
)  # fmt: skip
def test_a_question_that_cannot_be_asked(nano, wrong):
    right = {"loaded": nano, "pictures": PICTURE, "question": "q?", "method": "stride",
             "settings": Settings(max_new_tokens=1)}  # fmt: skip
    refuses(ask, **{**right, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [{"keep": "half"}, {"keep": NAN}, {"pool": None}, {"positions": 3}, {"max_new_tokens": "x"},
     {"max_new_tokens": 0}, {"max_new_tokens": True}, {"max_new_tokens": 1.5}, {"options": 3}],
    ids=str,
)  # fmt: skip
def test_settings_that_are_none(wrong):
    refuses(Settings, **wrong)


def test_the_budget_of_settings_is_a_budget():
    with pytest.raises(BudgetError, match="as a fraction"):
        Settings(keep="half")


@pytest.mark.parametrize(
    "wrong",
    [{"method": None}, {"method": 3}, {"method": "divprune"}, {"prompts": None}, {"prompts": []},
     {"prompts": 3}, {"prompts": INPUTS}, {"prompts": ["x"]}, {"keep": "half"}, {"keep": NAN},
     {"keep": 64}, {"keep": True}, {"score": 3}, {"score": lambda _: "x"}, {"score": lambda _: NAN},
     {"levels": 3}, {"levels": ("a",)}, {"levels": None}, {"levels": ("b", "a")}, {"layers": 3},
     {"layers": "x"}, {"layers": [1.5]}, {"level": 3}],
    ids=lambda wrong: f"{next(iter(wrong))}-{str(next(iter(wrong.values())))[:12]}",
)  # fmt: skip
def test_a_search_that_cannot_be(wrong):
    right = {"method": "fastv", "prompts": [INPUTS], "keep": 0.7}
    refuses(search_schedule, MODEL, **{**right, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [{"blocks": None}, {"blocks": "x"}, {"blocks": 1.5}, {"blocks": True}, {"blocks": []},
     {"blocks": ["x"]}, {"blocks": 0}, {"blocks": 99}, {"blocks": [99]}, {"kernel": None},
     {"kernel": 0}, {"kernel": "x"}, {"kernel": 1.5}, {"kernel": True}, {"fused": None},
     {"fused": "x"}, {"fused": 0}, {"kind": None}, {"kind": 3}, {"kind": "x"}, {"form": None},
     {"form": []}, {"seed": "x"}, {"seed": None}, {"seed": 1.5}, {"seed": 10**30}, {"seed": True},
     {"seed": -1}, {"processor": None}, {"processor": "x"}, {"processor": MODEL}],
    ids=str,
)  # fmt: skip
def test_a_fusion_that_cannot_be(nano, wrong):
    refuses(fuse, **{"model": nano.model, "processor": nano.processor, "blocks": 1, **wrong})


@pytest.mark.parametrize(
    ("given", "meant"), [("layers", "layer"), ("kep", "keep"), ("recyle", "recycle")]
)
def test_a_misspelt_argument_of_a_sieve_is_named(given, meant):
    with pytest.raises(ConfigError, match=f"no option '{given}'. Did you mean '{meant}'"):
        get_method("fastv", **{given: 3})
