"""Our docstrings as the reference shows them: an extension of griffe, which mkdocstrings reads by.

A paragraph "name: what it is" about arguments or fields becomes a list, a tree of names a block of
code, and what is raised a line of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from typing import Any

import griffe

_NAME = r"\w+(?: \([^)]*\))?"  # perhaps with a word on it
_SAID = re.compile(rf"({_NAME}(?:, {_NAME})*): (\S.*)")


class HouseStyle(griffe.Extension):
    """Rewrites each docstring where it is found."""

    def on_function(self, *, func: Any, **_: Any) -> None:
        """Called for every function and method."""
        _rewrite(func, {parameter.name for parameter in func.parameters})

    def on_module(self, *, mod: Any, **_: Any) -> None:
        """Called for every module."""
        _rewrite(mod, ())

    def on_class_members(self, *, cls: Any, **_: Any) -> None:
        """Called for every class, once its fields are known."""
        _rewrite(cls, set(cls.members))
        if cls.docstring is not None and any("Enum" in str(base) for base in cls.bases):
            cls.docstring.value += "\n\n" + values(cls.source)


def values(source: str) -> str:
    """The values of an enumeration with the comments behind them, as a list."""
    found = re.findall(r'^    [A-Z_]+ = "([^"]+)"(?:  # (.*))?$', source, re.MULTILINE)
    return "\n".join(f"- `{value}`" + (f": {said}" if said else "") for value, said in found)


def _rewrite(thing: Any, known: Collection[str]) -> None:
    if thing.docstring is not None:
        thing.docstring.value = as_markdown(thing.docstring.value, known)


def as_markdown(text: str, known: Collection[str]) -> str:
    """A docstring as Markdown. known: names that a line may begin with, such as arguments."""
    return "\n\n".join(
        _paragraph(part, known) for part in re.split(r"\n\s*\n", inspect.cleandoc(text))
    )


def _paragraph(text: str, known: Collection[str]) -> str:
    lines = text.split("\n")
    if any(mark in text for mark in ("├", "└")) or lines[0].startswith(("with ", "from ")):
        return f"```python\n{text}\n```" if "├" not in text else f"```text\n{text}\n```"
    out: list[str] = []
    for line in lines:
        found = _SAID.match(line)
        names = re.findall(r"(\w+)(?: \([^)]*\))?(?:, |$)", found[1]) if found else []
        if found and all(name in known for name in names):
            shown = re.sub(r"(\w+)((?: \([^)]*\))?(?:, |$))", r"`\1`\2", found[1])
            out += [] if not out or out[-1].startswith(("- ", "    ")) else [""]
            out.append(f"- {shown}: {found[2]}")
        elif out and out[-1].startswith(("- ", "    ")):
            out.append(f"    {line.strip()}")
        else:
            out.append(line)
    return "\n".join(out)
