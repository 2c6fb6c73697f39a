"""Options that several verbs take, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.budget import parse_keep as parse_keep
from tokensieve.errors import ConfigError

if TYPE_CHECKING:
    from tokensieve.hf.models.loaded import Loaded

MODEL, OUTPUT = "Model", "Output"
RECIPE, RUN = "Recipe", "Run"


def list_settings(recipe: str) -> Any:
    """The option that says the settings of the module `recipe`, and ends."""

    def listing(asked: bool | None) -> None:
        if asked:
            from tokensieve.train.settings import describe

            typer.echo(describe(import_module(recipe).SECTIONS))
            raise typer.Exit

    return typer.Option(
        "--list-settings",
        callback=listing,
        is_eager=True,
        help="Say every setting and its default, and end.",
        rich_help_panel=RECIPE,
    )


def load_here(name: str, dtype: str, device: str | None) -> Loaded:
    """The model called `name`, for a command: quietly, an embedded one on one thread."""
    import torch

    from tokensieve.hf.load import NANO, load_model
    from tokensieve.hf.models.loaded import hush

    hush()
    if name.partition("+")[0] in NANO:
        torch.set_num_threads(1)  # so small a model is slower on several
    return load_model(name, dtype, device)


def check_options(where: str, passed_over: Mapping[str, bool]) -> None:
    """Raise `ConfigError` for an option that would be passed over in silence there."""
    for option, is_given in passed_over.items():
        if is_given:
            raise ConfigError(
                f"Expected no {option} with {where}, which has no use for it. Got one. Leave it "
                "out."
            )


Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="'nano' or 'nano2' (in the package), a folder, or a name on the hub.",
        rich_help_panel=MODEL,
    ),
]
_DEVICE: dict[str, Any] = {
    "metavar": "NAME", "help": "cpu, cuda:0, ...", "rich_help_panel": MODEL,
}  # fmt: skip
Device = Annotated[str | None, typer.Option(show_default="a GPU if there is one", **_DEVICE)]
AskDevice = Annotated[
    str | None, typer.Option(show_default="a GPU if there is one; for nano, cpu", **_DEVICE)
]
MaxPixels = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Most pixels a picture may have.", rich_help_panel="Pictures"
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)
]

# of the `train` verbs
RunFolder = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", help="Where weights, log and checkpoints go.", rich_help_panel=RUN
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="JSON of settings, on top of the preset.", rich_help_panel=RECIPE
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Optimiser steps.", show_default="the preset's", rich_help_panel=RECIPE
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="One setting, on top of --config. May be repeated.",
        rich_help_panel=RECIPE,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", help="Decides first weights, order and noise.", rich_help_panel=RECIPE
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="CPU threads.",
        show_default="as PyTorch chooses",
        rich_help_panel=RUN,
    ),
]
