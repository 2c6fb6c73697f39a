"""Configs, settings, schedules, suites and options of methods from strangers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fuzz.common import bounded, fuzzed, json_values, one_line, spoilt
from tokensieve.data.extraction.extract import ExtractSettings
from tokensieve.errors import TokensieveError
from tokensieve.evaluate.config import Suite, Variant, load_suite
from tokensieve.fields import as_fields
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.nn.config import ObjectiveConfig, ReconstructorConfig, SelectorConfig
from tokensieve.nn.fusion_config import FusionConfig
from tokensieve.nn.thresholds import Thresholds
from tokensieve.schedules import PSigmoid, Searched, Stepwise
from tokensieve.train.fusion import recipe as fusion
from tokensieve.train.selector import recipe
from tokensieve.types import EncoderInfo

ENCODER = EncoderInfo("toy", 16, -1, 2, 2, 32, (5, 5))
INSIDE = {"encoder": {"model_type": "toy", "width": 16, "layer": -1, "depth": 2, "heads": 2,
                      "ffn": 32, "grid": [5, 5]}}  # fmt: skip
CLASSES = (
    SelectorConfig, ReconstructorConfig, ObjectiveConfig, FusionConfig, EncoderInfo, PSigmoid,
    Stepwise, ExtractSettings, Suite, Variant, recipe.TrainConfig, recipe.RunConfig,
    *fusion.SECTIONS.values(),
)  # fmt: skip
NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, True, 1e-300, 1e308, 2**31, 2**63, 10**30])
VALUES = json_values(NUMBERS | st.text(max_size=4))


def only_ours(make: Callable[[], Any]) -> Any:
    """What it makes, or None for an error of ours, in one line."""
    with bounded():
        try:
            return make()
        except TokensieveError as error:
            one_line(error)
            return None


@fuzzed
@given(cls=st.sampled_from(CLASSES), data=st.data())
def test_any_value_of_any_field(cls: type, data: st.DataObject) -> None:
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    names = st.sampled_from(known) | st.text(max_size=6)
    values = data.draw(st.dictionaries(names, VALUES, max_size=4))
    if "encoder" in known:
        values = INSIDE | values
    made = only_ours(lambda: cls(**as_fields(cls, values)))
    if made is not None and hasattr(made, "to_dict"):
        again = json.loads(json.dumps(made.to_dict()))
        assert cls.from_dict(again) == made  # type: ignore[attr-defined]


SETTINGS = sorted(
    f"{section}.{field.name}"
    for sections in (recipe.SECTIONS, fusion.SECTIONS)
    for section, cls in sections.items()
    for field in fields(cls)  # type: ignore[arg-type]
)


@fuzzed
@given(
    settings=st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from(SETTINGS) | st.text(max_size=8),
            st.text(max_size=8) | NUMBERS.map(str) | VALUES.map(json.dumps),
        ),
        max_size=3,
    )
)
def test_any_setting(settings: list[str]) -> None:
    only_ours(lambda: recipe.make_recipe(ENCODER, "default", settings))
    only_ours(lambda: fusion.make_recipe("stage1", settings))


@fuzzed
@given(name=st.sampled_from(method_names()) | st.text(max_size=6), data=st.data())
def test_any_option_of_any_method(name: str, data: st.DataObject) -> None:
    known = ["recycle", "cover"]
    if name in method_names():
        known += [field.name for field in fields(method_class(name))]
    options = data.draw(
        st.dictionaries(st.sampled_from(known) | st.text(max_size=6), VALUES, max_size=3)
    )
    for option in options.keys() & {"name"}:
        del options[option]
    # the tests' own check of types takes no whole number for a float; ours does
    told = {k: float(v) if type(v) is int and abs(v) < 2**60 and k not in _WHOLE else v
            for k, v in options.items()}  # fmt: skip
    made = only_ours(lambda: get_method(name, **told))
    if made is not None:
        json.dumps(made.options())


_WHOLE = {
    field.name for name in method_names() for field in fields(method_class(name))
    if "int" in str(field.type)
} | {"cover"}  # fmt: skip

SEARCHED = json.dumps({"format": 1, "llm": {"model_type": "a", "width": 8, "depth": 3, "heads": 2,
                       "ffn": 8}, "trace": [[1, 1, 1], [1, 1, 0.5]]}).encode()  # fmt: skip
TABLE = json.dumps({**INSIDE, "shares": [0.5], "values": [[0.1, 0.2]]}).encode()
SUITE = json.dumps({"suite": "s", "variants": [{"name": "a", "method": "random", "keeps": [0.5]}],
                    "registry": {"positions": ["keep"]}}).encode()  # fmt: skip
PLAIN = json.dumps({"train.steps": 3, "selector.depth": 1}).encode()
READERS: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    "searched": (SEARCHED, Searched.load),
    "thresholds": (TABLE, Thresholds.load),
    "suite": (SUITE, load_suite),
    "settings": (PLAIN, recipe.read_settings),
}


def test_the_seeds_are_whole(tmp_path: Path) -> None:
    for name, (seed, read) in READERS.items():
        (tmp_path / name).write_bytes(seed)
        assert read(tmp_path / name)


@fuzzed
@given(kind=st.sampled_from(sorted(READERS)), data=st.data())
def test_any_file(kind: str, data: st.DataObject) -> None:
    seed, read = READERS[kind]
    held = spoilt([seed]) | VALUES.map(lambda v: json.dumps(v).encode())
    held |= st.builds(_replaced, st.just(seed), st.integers(0, 9), VALUES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        path.write_bytes(data.draw(held))
        only_ours(lambda: read(path))


def _replaced(seed: bytes, at: int, value: Any) -> bytes:
    told = json.loads(seed)
    told[sorted(told)[at % len(told)]] = value
    return json.dumps(told).encode()
