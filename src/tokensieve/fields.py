"""What the fields of a config may hold, checked in one place: types, bounds, choices, names.

A dataclass says it once, by annotation and `option`; messages and the CLI's help follow from that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tokensieve.errors import ConfigError, TokensieveError, UnknownNameError

LARGEST = 2**63 - 1  # of a whole number that says nothing else: what PyTorch can hold
_JSON_BYTES = 64_000_000  # of a JSON file that is read at all
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text",
          NoneType: "None"}  # fmt: skip


def option(
    default: Any = dataclasses.MISSING, text: str = "", *,
    low: int | float | None = None, high: int | float | None = None,
    over: int | float | None = None, under: int | float | None = None,
    choices: Iterable[str] = (),
) -> Any:  # fmt: skip
    """A dataclass field: its default, the one string that describes it, and what it may hold.

    low, high: the least and the largest number. over, under: the same, themselves not allowed.
    choices: the texts there are.
    """
    bounds = {"low": low, "high": high, "over": over, "under": under, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata={"help": text, **bounds})


def check_fields(instance: Any) -> None:
    """Raise `ConfigError` where a field of a dataclass holds what its annotation or its `option`
    does not allow. For `__post_init__`."""
    check_values(type(instance), {f.name: getattr(instance, f.name) for f in _fields(instance)})


def check_values(cls: type, values: Mapping[str, Any], section: str = "") -> None:
    """The same for values by field, before an instance is made of them. Other names are left.
    Messages name the field, in its `section` where one is given."""
    known = _known(cls)
    for name, value in values.items():
        if name in known:
            _check(f"{section}.{name}" if section else name, value, *known[name])


def check_number(name: str, value: object, *, low: int, high: int = LARGEST) -> int:
    """`value` if it is a whole number from `low` to `high`. Raises `ConfigError`."""
    _check(name, value, int, {"low": low, "high": high})
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_names(what: str, given: Iterable[object], known: Iterable[str]) -> None:
    """Raise `UnknownNameError`, with the nearest name, for one that is not known."""
    known = tuple(known)
    for name in given:
        if not isinstance(name, str) or name not in known:
            raise UnknownNameError.of(what, name, known)


def as_fields(cls: type, values: Any) -> dict[str, Any]:
    """Values as JSON has them, ready for `cls` and checked: lists become tuples, objects and texts
    the dataclasses and enumerations that its fields want.

    Raises `UnknownNameError` for a name that is no field, `ConfigError` for a field left out and
    what `check_fields` raises.
    """
    known = _known(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(f"Expected an object, fields of {cls.__name__}. Got {shown(values)}.")
    check_names(f"{cls.__name__} field", values, known)
    for field in _fields(cls):
        given = field.name in values or not field.init
        if not given and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(
                f"Expected `{field.name}` among the fields of {cls.__name__}. Got none."
            )
    ready = {name: _from_json(name, value, known[name][0]) for name, value in values.items()}
    check_values(cls, ready)
    return ready


def from_text(cls: type, name: str, text: str, section: str = "", *, checked: bool = True) -> Any:
    """What a text, as typed on a command line, says of the field `name` of `cls`; checked as
    `check_values` does, unless who takes it will.

    Raises `UnknownNameError` for a name that is no field, `ConfigError` for what does not fit.
    """
    known = _known(cls)
    check_names(f"{cls.__name__} field", [name], known)
    value = _from_text(text, _parts(known[name][0]))
    if checked:
        check_values(cls, {name: value}, section)
    return value


def read_object(
    path: str | Path, what: str, error: type[TokensieveError] = ConfigError, advice: str = ""
) -> dict[str, Any]:
    """The object in a JSON file. Raises `error` where there is none, whatever the file holds."""
    path = Path(path)
    try:
        if not path.is_file():
            raise OSError("a folder" if path.is_dir() else "no such file")
        if path.stat().st_size > _JSON_BYTES:
            raise OSError(f"a file of more than {_JSON_BYTES // 10**6} MB")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"Expected {what} as JSON in {path}. Got: {problem}.{_then(advice)}") from None
    if not isinstance(values, dict):
        got = shown(values)
        raise error(f"Expected {what} as a JSON object in {path}. Got {got}.{_then(advice)}")
    return values


def shown(value: object) -> str:
    """A value as messages show it: short, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{twice}' twice")
    return found


def _then(advice: str) -> str:
    return f" {advice}" if advice else ""


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


@lru_cache(maxsize=256)
def _known(cls: type) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Type and bounds of each field."""
    try:
        hints = get_type_hints(cls)
    except NameError:  # a class inside a function: its names cannot be looked up
        hints = {}
    return {field.name: (hints.get(field.name, Any), field.metadata) for field in _fields(cls)}


def _check(name: str, value: Any, hint: Any, bounds: Mapping[str, Any]) -> None:
    if not _fits(value, hint):
        raise ConfigError(f"Expected `{name}` as {_words(hint)}. Got {shown(value)}.")
    if bounds.get("choices") and isinstance(value, str) and value not in bounds["choices"]:
        raise UnknownNameError.of(name, value, bounds["choices"])
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(name, value, bounds)


def _check_bounds(name: str, value: int | float, bounds: Mapping[str, Any]) -> None:
    low, over, high, under = (bounds.get(key) for key in ("low", "over", "high", "under"))
    inside = (
        (low is None or value >= low) and (over is None or value > over)
        and (high is None or value <= high) and (under is None or value < under)
    )  # fmt: skip
    if not inside:
        wanted = _range(value, low, over, high, under)
    elif isinstance(value, int) and abs(value) > LARGEST:
        wanted = f"of at most {LARGEST}" if value > 0 else f"of at least {-LARGEST}"
    elif isinstance(value, float) and not math.isfinite(value):
        wanted = "as a finite number"
    else:
        return
    raise ConfigError(f"Expected `{name}` {wanted}. Got {shown(value)}.")


def _range(value: int | float, low: Any, over: Any, high: Any, under: Any) -> str:
    """The bounds in words, as short as tells what is wrong."""
    if isinstance(value, int) and isinstance(low, int) and None not in (low, high):
        return f"of at least {low}" if value < low else f"of at most {high}"
    if high is None and under is None:
        return f"of {low} or more" if over is None else f"above {over}"
    if low is None and over is None:
        return f"of {high} or less" if under is None else f"below {under}"
    left = f"[{low}" if over is None else f"({over}"
    return f"in {left}, " + (f"{high}]" if under is None else f"{under})")


def _fits(value: Any, hint: Any, *, finite: bool = False) -> bool:
    """Whether a value is of an annotated type. True and False are no numbers."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part, finite=finite) for part in args)
    if origin is Literal:
        return value in args
    if origin is not None:
        return _fits_inside(value, origin, args)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float)
        return number and not isinstance(value, bool) and not (finite and not _finite(value))
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _finite(value: int | float) -> bool:
    return abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value)


def _fits_inside(value: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    """The same for what holds others."""
    if not isinstance(value, origin) or (isinstance(value, str) and origin is not str):
        return False
    if isinstance(value, Mapping):
        return all(
            _fits(k, args[0], finite=True) and _fits(v, args[1], finite=True)
            for k, v in value.items()
        )
    if isinstance(value, tuple) and args and args[-1] is not Ellipsis and origin is tuple:
        return len(value) == len(args) and all(
            _fits(v, part, finite=True) for v, part in zip(value, args, strict=True)
        )
    return not isinstance(value, Sequence) or all(_fits(v, args[0], finite=True) for v in value)


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(part) for part in args)
    if origin is not None:
        inside = ", ".join("..." if part is Ellipsis else _words(part) for part in args)
        return f"a {origin.__name__.lower()} of ({inside})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"a {hint.__name__} ({', '.join(str(member) for member in hint)})"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _from_text(text: str, parts: tuple[Any, ...]) -> Any:
    """The first of None, True, False, a number and the text itself that may be meant."""
    words: dict[str, Any] = {"none": None, "null": None} if NoneType in parts else {}
    words |= {"true": True, "false": False} if bool in parts else {}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        if number in parts:
            with contextlib.suppress(ValueError):
                return number(text)
    return text


def _from_json(name: str, value: Any, hint: Any) -> Any:
    """A value of JSON as what the annotation wants, where that can be told."""
    for part in _parts(hint):
        if isinstance(value, list) and get_origin(part) is tuple:
            args = get_args(part)
            each = (
                args if Ellipsis not in args and len(args) == len(value) else args[:1] * len(value)
            )
            return tuple(_from_json(name, v, hint) for v, hint in zip(value, each, strict=True))
        if part is float and int not in _parts(hint) and isinstance(value, int):
            small = not isinstance(value, bool) and abs(value) <= LARGEST
            return float(value) if small else value
        if isinstance(value, Mapping) and dataclasses.is_dataclass(part):
            return part(**as_fields(part, value))  # type: ignore[operator, arg-type]
        if isinstance(value, str) and isinstance(part, type) and issubclass(part, Enum):
            check_names(name, [value], [str(member) for member in part])
            return part(value)
    return value
