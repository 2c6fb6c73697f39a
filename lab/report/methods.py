"""docs/methods.md from the registry: `python -m lab.report.methods`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields

from tokensieve.files import write_text
from tokensieve.methods.base import Method
from tokensieve.methods.registry import method_class, method_names
from tokensieve.types import Site

TITLES = {
    (Site.PIXELS,): "Before the encoder",
    (Site.ENCODER,): "Inside the encoder",
    (Site.FEATURES, Site.EMBEDS): "Before the LLM",
    (Site.LLM,): "Inside the LLM",
}


def main() -> None:
    """Write the page into docs/ of the current folder."""
    write_text("docs/methods.md", page())


def page() -> str:
    """Every method under the site where it acts, in its own words."""
    parts = [
        "# Methods",
        "Made from the registry by `python -m lab.report.methods`; do not edit. A method "
        "is one file in `src/tokensieve/methods/` and one line in its `registry.py`; this page, "
        "`tokensieve methods`, the contract tests, the comparison and the benchmark follow. How "
        "they read: [comparison.md](results/comparison.md); what choosing costs: "
        "[selection.md](results/selection.md).",
    ]
    for sites, title in TITLES.items():
        names = [name for name in method_names() if method_class(name).site in sites]
        parts += [f"## {title}"] if names else []
        for name in names:
            parts += _section(name, method_class(name))
    return "\n\n".join(parts) + "\n"


def _section(name: str, cls: type[Method]) -> Iterator[str]:
    yield f"### `{name}`"
    yield inspect.cleandoc(cls.__doc__ or "").replace("*", "\\*")
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


if __name__ == "__main__":
    main()
