"""docs/methods.md and docs/reading-list.md from the registry: `python -m lab.report.methods`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields

from lab.report import reading_list
from lab.report.markdown import table
from tokensieve.files import write_text
from tokensieve.methods.base import Method
from tokensieve.methods.registry import method_class, method_names
from tokensieve.types import Site

TITLES = {
    (Site.PIXELS, Site.PATCHES): "Before the encoder",
    (Site.ENCODER,): "Inside the encoder",
    (Site.FEATURES, Site.EMBEDS): "Before the LLM",
    (Site.LLM,): "Inside the LLM",
}


def main() -> None:
    """Write the pages into docs/ of the current folder."""
    write_text("docs/methods.md", page())
    write_text("docs/reading-list.md", reading_list.page())


def page() -> str:
    """Every method under the site where it acts, in its own words."""
    at = {title: [n for n in method_names() if method_class(n).site in sites]
          for sites, title in TITLES.items()}  # fmt: skip
    lists = [["acts", "methods"]]
    lists += [[title, " ".join(f"[`{n}`](#{n})" for n in names)] for title, names in at.items()]
    parts = [
        "# Methods",
        "Every method by the place where it acts, in its own words. Which to take: "
        "[choose a method](guides/choose.md). How they read, beside each other: "
        "[comparison](results/comparison.md). What choosing costs: "
        "[selection](results/selection.md). What became of every work read: "
        "[the reading list](reading-list.md).",
        table(lists).replace("--:", ":--"),
        "Made from the registry by `python -m lab.report.methods`; do not edit.",
    ]
    for title, names in at.items():
        parts += [f"## {title}"] if names else []
        for name in names:
            parts += _section(name, method_class(name))
    return "\n\n".join(parts) + "\n"


def _section(name: str, cls: type[Method]) -> Iterator[str]:
    yield f"### `{name}`"
    doc = inspect.cleandoc(cls.__doc__ or "").replace("*", "\\*").replace("[CLS]", "\\[CLS]")
    yield _with_list(doc, [field.name for field in fields(cls)])
    said = [f"Site: {cls.site_text()}"]
    if cls.needs:
        said.append(f"needs {', '.join(sorted(cls.needs))}")
    if defaults := [f"`{f.name}={f.default!r}`" for f in fields(cls)]:
        said.append(f"options {', '.join(defaults)}")
    if cls.trained:
        said.append("trained")
    if not cls.exact:
        said.append("the budget is a mean" if cls.on_average else "may keep fewer than asked")
    yield "; ".join(said) + "."


def _with_list(text: str, names: Sequence[str]) -> str:
    """A line "option: what it is" of each of `names`, made an item of a list."""
    for name in names:
        text = re.sub(rf"^{name}: ", f"- `{name}`: ", text, flags=re.MULTILINE)
    return text


if __name__ == "__main__":
    main()
