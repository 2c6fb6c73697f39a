"""`tokensieve export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tokensieve.cli.options import AsJson, parse_keep
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.fields import shown

FORM = "Form"

Method = Annotated[str, typer.Argument(metavar="METHOD", help="selector.")]
Weights = Annotated[
    str,
    typer.Argument(
        metavar="WEIGHTS",
        help="Its weights: a folder, a name on the hub, or 'nano' or 'nano2' (in the package).",
    ),
]
To = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="A new file: .onnx, or .xml for OpenVINO, with its weights beside it in a .bin.",
        rich_help_panel=FORM,
    ),
]
GridOf = Annotated[
    str | None,
    typer.Option(
        metavar="ROWSxCOLUMNS",
        help="With --keep: fix every shape to one crop of that grid.",
        show_default="any number of crops and tokens",
        rich_help_panel=FORM,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="With --grid: how many tokens stay, a share or a number.",
        show_default="told with each picture",
        rich_help_panel=FORM,
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="top or diverse.",
        show_default="that of the weights",
        rich_help_panel=FORM,
    ),
]


def export(
    method: Method,
    weights: Weights,
    to: To,
    grid: GridOf = None,
    keep: Keep = None,
    rule: Rule = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained selector, its rule included, as a file for ONNX Runtime or OpenVINO.

    Crops' tokens in, indices that stay out: pip install 'tokensieve[export]'.
    """
    from tokensieve.methods.registry import method_class
    from tokensieve.nn.selector import Selector
    from tokensieve.nn.shipped import folders
    from tokensieve.serving.export import check_target, export_selector

    method_class(method)
    if method != "selector":
        raise UnsupportedError(
            f"Expected the method 'selector', whose weights are made into a graph. Got '{method}'. "
            "Other methods are a few lines of tensors: docs/methods.md names the file of each."
        )
    check_target(to)
    size, share = _grid(grid), None if keep is None else parse_keep(keep)
    shipped = {folder.name.removeprefix("selector-"): folder for folder in folders()}
    options: dict[str, Any] = {} if rule is None else {"rule": rule}
    selector = Selector.from_pretrained(shipped.get(weights, weights), **options)
    told = export_selector(selector, to, grid=size, keep=share)
    if as_json:
        typer.echo(json.dumps({"file": str(to), **told}))
    else:
        typer.echo(_told(told, to))


def _grid(text: str | None) -> tuple[int, int] | None:
    """ "24x24" as rows and columns. Raises `ConfigError` for another text."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 1 <= int(side) <= 4096 for side in sides):
        raise ConfigError(
            f"Expected --grid as ROWSxCOLUMNS, each from 1 to 4096, such as 24x24. Got "
            f"{shown(text)}."
        )
    return int(sides[0]), int(sides[1])


def _told(told: dict[str, Any], to: Path) -> str:
    """What was written, in plain words."""
    sides = {
        side: ", ".join(
            f"{name} ({', '.join(map(str, shape))})" if shape else f"{name} (one number)"
            for name, shape in told[side].items()
        )
        for side in ("inputs", "outputs")
    }
    return f"{to}\n  in:  {sides['inputs']}\n  out: {sides['outputs']}"
