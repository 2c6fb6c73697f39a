"""One check of types, bounds, choices and names, for every config, schedule and method."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.fields import (
    as_fields,
    check_fields,
    check_number,
    from_text,
    option,
    read_object,
    shown,
)
from tokensieve.methods.registry import get_method, method_class, method_names
from tokensieve.types import Site


@dataclass(frozen=True)
class Inner:
    size: int = option(1, low=0, high=9)


@dataclass(frozen=True)
class Outer:
    count: int = option(low=1, high=10)
    share: float = option(0.5, over=0, high=1)
    rate: float = option(1.0, over=0)
    least: float = option(0.0, low=0)
    flag: bool = False
    name: str = option("a", "what it is called", choices=("a", "b"))
    maybe: int | None = None
    table: tuple[float, ...] = ()
    pair: tuple[int, int] | None = None
    site: Site = Site.FEATURES
    inner: Inner | None = None
    plain: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "Expected `count` of at least 1. Got 0."),
        ({"count": 11}, "Expected `count` of at most 10. Got 11."),
        ({"count": 10**5000}, "Expected `count` of at most 10. Got a number of thousands of dig"),
        ({"count": True}, "Expected `count` as a whole number. Got True."),
        ({"count": 1.0}, "Expected `count` as a whole number. Got 1.0."),
        ({"count": "3"}, "Expected `count` as a whole number. Got '3'."),
        ({"count": None}, "Expected `count` as a whole number. Got None."),
        ({"count": 1, "share": 0}, "Expected `share` in (0, 1]. Got 0."),
        ({"count": 1, "share": math.nan}, "Expected `share` in (0, 1]. Got nan."),
        ({"count": 1, "rate": -1.0}, "Expected `rate` above 0. Got -1.0."),
        ({"count": 1, "rate": math.inf}, "Expected `rate` as a finite number. Got inf."),
        ({"count": 1, "rate": 10**400}, "Expected `rate`"),
        ({"count": 1, "least": -1}, "Expected `least` of 0 or more. Got -1."),
        ({"count": 1, "flag": 1}, "Expected `flag` as True or False. Got 1."),
        ({"count": 1, "name": "c"}, "Unknown name 'c'. Known: a, b."),
        ({"count": 1, "maybe": "x"}, "Expected `maybe` as a whole number or None. Got 'x'."),
        ({"count": 1, "plain": 2**70}, "Expected `plain` of at most"),
        ({"count": 1, "table": [1.0, math.nan]}, "Expected `table` as a tuple of (a number, ...)"),
        ({"count": 1, "table": [1.0, False]}, "Expected `table` as a tuple"),
        ({"count": 1, "pair": [1, 2, 3]}, "Expected `pair` as a tuple of (a whole number, a whole"),
        ({"count": 1, "site": "moon"}, "Unknown site 'moon'."),
        ({"count": 1, "inner": {"size": 10}}, "Expected `size` of at most 9. Got 10."),
        ({"count": 1, "inner": {"sise": 1}}, "Unknown Inner field 'sise'. Did you mean 'size'?"),
        ({"count": 1, "flagg": True}, "Unknown Outer field 'flagg'. Did you mean 'flag'?"),
        ({}, "Expected `count` among the fields of Outer. Got none."),
    ],
)
def test_each_wrong_value_is_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        Outer(**as_fields(Outer, values))
    assert message in str(told.value)


def test_what_json_holds_becomes_what_the_fields_want() -> None:
    values = {"count": 3, "share": 1, "table": [1, 2.5], "pair": [2, 3], "site": "llm",
              "inner": {"size": 4}}  # fmt: skip
    made = Outer(**as_fields(Outer, values))
    assert made == Outer(3, 1, table=(1, 2.5), pair=(2, 3), site=Site.LLM, inner=Inner(4))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '{"a": 1, "a": 2}', "[" * 100_000, '{"a": ', '"\\ud800', "nul\0l"],
)
def test_files_that_hold_no_object(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="Expected settings as"):
        read_object(path, "settings")
    for other in (tmp_path, tmp_path / "none", tmp_path / "a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="Expected settings as JSON in"):
            read_object(other, "settings")


def test_numbers_alone_and_what_is_shown() -> None:
    assert check_number("seed", 0, low=0) == 0
    with pytest.raises(ConfigError, match=r"Expected `seed` of at least 0\. Got -1"):
        check_number("seed", -1, low=0)
    assert len(shown("x" * 10_000)) < 100


WRONG: tuple[Any, ...] = (
    "a", b"a", 1.5, math.nan, -math.inf, True, None, [], {}, 10**30, -1.5, object(), Site,
)  # fmt: skip


@pytest.mark.parametrize("name", method_names())
def test_every_option_of_every_method_takes_it_or_says_why_not(name: str) -> None:
    """No method says what its options' types are: the registry's annotations do."""
    fields = list(method_class(name).__dataclass_fields__)
    for option_name in fields:
        for value in WRONG:
            try:
                made = get_method(name, **{option_name: value})
            except ConfigError as error:
                assert option_name in str(error)  # noqa: PT017
            else:
                json.dumps(made.options())
    with pytest.raises(ConfigError, match="has no option"):
        get_method(name, **{(fields[0] if fields else "seed") + "s": 1})


def test_a_method_made_directly_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"Expected `seed` as a whole number\. Got '3'"):
        method_class("random")("3")  # type: ignore[call-arg]
    with pytest.raises(UnknownNameError, match="rule"):
        method_class("selector")(rule="tops")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="Did you mean 'stages'"):
        get_method("evit", stage=3)


@pytest.mark.parametrize("name", method_names())
def test_every_default_of_every_method_can_be_typed(name: str) -> None:
    for field in dataclasses.fields(method_class(name)):
        assert from_text(method_class(name), field.name, str(field.default)) == field.default
