"""`section.field=value` settings, parsed and described from the config dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.fields import check_names, check_values, from_text, shown
from tokensieve.nn.config import Config


def parse_settings(
    settings: Sequence[str], sections: Mapping[str, type[Config]]
) -> dict[str, dict[str, Any]]:
    """Values by section and field. Later settings win.

    Raises `ConfigError` for a setting without "=", an unknown name or a value of the wrong type.
    """
    known = [
        f"{section}.{field.name}" for section, cls in sections.items() for field in _settable(cls)
    ]
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"Expected section.field=value. Got {shown(setting)}.")
        if name not in known:
            raise UnknownNameError.of("setting", name, known)
        section, _, field = name.partition(".")
        values[section][field] = _value(sections[section], section, field, text)
    return values


def names_of_presets(package: str) -> list[str]:
    """Names of the presets that lie in a package."""
    files = resources.files(package).iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith("json"))


def read_preset(package: str, name: str) -> dict[str, Any]:
    """What a preset of a package says. Raises `UnknownNameError`."""
    check_names("preset", [name], names_of_presets(package))
    text = resources.files(package).joinpath(f"{name}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Values by `section.field` as settings."""
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def describe(sections: Mapping[str, type[Config]]) -> str:
    """One line per setting: name, default, what it does."""
    return "\n".join(
        f"  {section}.{field.name}={_default(field)}  {field.metadata['help']}"
        for section, cls in sections.items()
        for field in _settable(cls)
    )


def _settable(cls: type[Config]) -> list[dataclasses.Field[Any]]:
    """Fields with a default: the encoder comes with the features, tables are measured, what a
    training was is told by it."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    given = [field for field in fields if field.default is not dataclasses.MISSING]
    return [field for field in given if not str(field.type).startswith(("tuple", "TrainedBy"))]


def _default(field: dataclasses.Field[Any]) -> str:
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


def _value(cls: type[Config], section: str, field: str, text: str) -> Any:
    """What `text` says. A string of JSON, as settings from files are, is text and nothing else."""
    said = None
    if text.startswith('"'):
        with contextlib.suppress(ValueError):
            said = json.loads(text)
    if said is None:
        return from_text(cls, field, text, section)
    check_values(cls, {field: said}, section)
    return said
