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

_SAID = re.compile(r"(\w+(?:, \w+)*)(?: \(([^)]*)\))?: (\S.*)")


class HouseStyle(griffe.Extension):
    """Rewrites each docstring where it is found."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is None:
            return
        known = {parameter.name for parameter in getattr(obj, "parameters", ())}
        if obj.is_class:
            known |= set(obj.members)
        obj.docstring.value = as_markdown(obj.docstring.value, known)


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
        names = found[1].split(", ") if found else []
        if found and all(name in known for name in names):
            shown = ", ".join(f"`{name}`" for name in names)
            of = f" ({found[2]})" if found[2] else ""
            out += [] if not out or out[-1].startswith(("- ", "    ")) else [""]
            out.append(f"- {shown}{of}: {found[3]}")
        elif out and out[-1].startswith(("- ", "    ")):
            out.append(f"    {line.strip()}")
        else:
            out.append(line)
    return "\n".join(out)
