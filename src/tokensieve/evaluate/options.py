"""Methods and their options as `tokensieve ask` is told them, read by the fields' declarations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tokensieve.errors import ConfigError, UnknownNameError, UnsupportedError, did_you_mean
from tokensieve.evaluate.ask import PLAN, Settings
from tokensieve.fields import from_text, shown
from tokensieve.methods.registry import method_class


def named_methods(first: str, others: str = "") -> list[str]:
    """`first` and the names in `others`, which commas part.

    Raises `UnknownNameError` for a name that is no method, `UnsupportedError` for a pair of them.
    """
    names = [first.strip(), *(name.strip() for name in others.split(",") if name.strip())]
    for name in names:
        if "+" in name:
            pair = tuple(part.strip() for part in name.split("+"))
            raise UnsupportedError(
                f"Expected one method at a time. Got {name}, which needs a `keep` for each. Use it "
                f"from Python: sieve(model, {pair}, keep=(0.5, 0.2))."
            )
        method_class(name)
    return names


def read_options(
    texts: Sequence[str], methods: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Texts such as "rule=diverse": what `Settings` takes of `PLAN`, and by method its own fields.

    A value that fits one method goes to all that have the field; another refuses it by itself.

    Raises `ConfigError` for a text without "=" or a value that fits no method, `UnknownNameError`
    for an option that none of the methods has, with the list of what they have.
    """
    plan: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(
                f"Expected --option NAME=VALUE. Got {shown(text)}. Pass {_known(methods)}."
            )
        owners = [one for one in dict.fromkeys(methods) if name in _fields_of(one)]
        if name in PLAN:
            plan[name] = from_text(Settings, name, value)
        elif owners:
            for one, read in _read_by(owners, name, value).items():
                options.setdefault(one, {})[name] = read
        else:
            every = [*PLAN, *(field for one in methods for field in _fields_of(one))]
            raise UnknownNameError(
                f"Unknown option {shown(name)}.{did_you_mean(name, every)} Known: "
                f"{_known(methods)}."
            )
    return plan, options


def _read_by(owners: Sequence[str], name: str, text: str) -> dict[str, Any]:
    """The value by method, unchecked where it does not fit. Raises where it fits none."""
    found, errors = {}, []
    for one in owners:
        try:
            found[one] = from_text(method_class(one), name, text)
        except ConfigError as error:
            found[one] = from_text(method_class(one), name, text, checked=False)
            errors.append(error)
    if len(errors) == len(owners):
        raise errors[0]
    return found


def _fields_of(method: str) -> list[str]:
    return [field.name for field in fields(method_class(method))]


def _known(methods: Sequence[str]) -> str:
    """The options there are, by method."""
    of_methods = [
        f"{', '.join(_fields_of(one)) or 'none'} of {one}" for one in dict.fromkeys(methods)
    ]
    return "; ".join([*of_methods, f"{', '.join(PLAN)} of any"])
