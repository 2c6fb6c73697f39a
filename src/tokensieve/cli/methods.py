"""`tokensieve methods`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the methods and what each needs."""
    from tokensieve.methods.registry import method_class, method_names

    rows = []
    for name in method_names():
        kind = method_class(name)
        rows.append(
            {
                "name": name,
                "site": kind.site_text(),
                "trained": kind.trained,
                "needs": sorted(kind.needs),
                "paper": kind.paper,
                "about": _summary(kind.__doc__ or ""),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        from tokensieve.evaluate.console import methods_table, show

        show(methods_table(rows))


def _summary(docstring: str) -> str:
    """The first paragraph on one line, without its marks of reference."""
    return " ".join(docstring.strip().split("\n\n")[0].split()).replace(" [1]", "")
