"""Help in groups and whole: plain text, wrapped to the terminal (80 columns when piped), never cut.

An option's group is its `rich_help_panel`; rich itself would take half of the time of `--help`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

NAMES = 28  # columns an option's name may have before its text begins on a line of its own


class Verb(TyperCommand):
    """A command whose options stand in groups."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write(formatter, _grouped(self, ctx))


class Verbs(TyperGroup):
    """A group of commands, each with its whole first paragraph."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        verbs = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, _first_paragraph(verb.help)) for name, verb in verbs if verb is not None]
        _write(formatter, {"Commands": rows, **_grouped(self, ctx)})


def _grouped(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """(name, text) of every parameter by group: arguments, the groups in the order of the
    signature, and those without one."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    rest = []
    for param in command.get_params(ctx):
        if (record := param.get_help_record(ctx)) is None:
            continue
        name = re.sub(r" <.*>$", "", record[0])
        text = re.sub(r"\[default: \((.*?)\)", r"[default: \1", record[1])  # of words, not a value
        if param.param_type_name == "argument":
            groups["Arguments"].append((name + "..." * (param.nargs == -1), text))
        elif group := getattr(param, "rich_help_panel", None):
            groups.setdefault(group, []).append((name, text))
        else:
            rest.append((name, text))
    groups = {name: rows for name, rows in groups.items() if rows}
    return {**groups, "Other" if groups else "Options": rest}


def _write(formatter: Any, groups: dict[str, list[tuple[str, str]]]) -> None:
    """All groups with their texts in one column."""
    wide = _width(name for rows in groups.values() for name, _ in rows)
    for group, rows in groups.items():
        with formatter.section(group):
            formatter.write_dl([(name.ljust(wide), text) for name, text in rows], col_max=NAMES)


def _width(names: Iterable[str]) -> int:
    return max(len(name) for name in names if len(name) <= NAMES)


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())
