"""`section.field=value` settings, parsed and described from the config dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.fields import shown
from tokensieve.nn.config import Config


def parse_settings(
    settings: Sequence[str], sections: Mapping[str, type[Config]]
) -> dict[str, dict[str, Any]]:
    """Values by section and field. Later settings win.

    Raises `ConfigError` for a setting without "=", an unknown name or a value of the wrong type.
    """
    known = {
        f"{section}.{field.name}": str(field.type)
        for section, cls in sections.items()
        for field in _settable(cls)
    }
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"Expected section.field=value. Got {shown(setting)}.")
        if name not in known:
            raise UnknownNameError.of("setting", name, known)
        section, _, field = name.partition(".")
        values[section][field] = _value(name, text, known[name])
    return values


def describe(sections: Mapping[str, type[Config]]) -> str:
    """One line per setting: name, default, what it does."""
    return "\n".join(
        f"  {section}.{field.name}={_default(field)}  {field.metadata['help']}"
        for section, cls in sections.items()
        for field in _settable(cls)
    )


def _settable(cls: type[Config]) -> list[dataclasses.Field[Any]]:
    """Fields with a default: the encoder comes with the features, tables are measured."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    given = [field for field in fields if field.default is not dataclasses.MISSING]
    return [field for field in given if not str(field.type).startswith("tuple")]


def _default(field: dataclasses.Field[Any]) -> str:
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


def _value(name: str, text: str, kind: str) -> Any:
    """`text` as the annotated type `kind`: str, bool, int, float, or one of them or None."""
    if text in ("null", "None", "none") and "None" in kind:
        return None
    if kind.startswith("str"):
        return _string(text)
    if kind.startswith("bool"):
        if text not in ("true", "false"):
            raise ConfigError(f"Expected {name} as true or false. Got {shown(text)}.")
        return text == "true"
    try:
        return int(text) if kind.startswith("int") else float(text)
    except ValueError as error:
        raise ConfigError(f"Expected {name} as {kind}. Got {shown(text)}.") from error


def _string(text: str) -> str:
    """`text`, or what it says where it is a string of JSON, as settings from files are."""
    if text.startswith('"'):
        with contextlib.suppress(ValueError):
            return str(json.loads(text))
    return text
