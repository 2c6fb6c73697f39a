"""`tokensieve train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.help import Verb, Verbs
from tokensieve.cli.options import (
    RECIPE,
    RUN,
    ConfigFile,
    RunFolder,
    Seed,
    Set,
    Steps,
    Threads,
    list_settings,
)
from tokensieve.cli.train_fusion import fusion
from tokensieve.errors import ConfigError
from tokensieve.fields import shown

DATA = "Data"

train = typer.Typer(
    cls=Verbs,
    help="Train what learns: a selector for a frozen encoder, a projector that fuses tokens.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Features = Annotated[
    list[Path],
    typer.Option(
        metavar="FOLDER",
        help="A feature store; see `tokensieve extract`. May be repeated.",
        rich_help_panel=DATA,
    ),
]
Mix = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE=WEIGHT",
        help="How often a source is drawn. May be repeated.",
        show_default="the preset's, or all crops alike",
        rich_help_panel=DATA,
    ),
]
Validation = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="A store to validate on. May be repeated.",
        show_default="crops held out",
        rich_help_panel=DATA,
    ),
]
Holdout = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Share of the pictures held out for validation.",
        rich_help_panel=DATA,
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="default, when-less-is-enough or adaptive; these also with -printed.",
        rich_help_panel=RECIPE,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="no or bf16.", show_default="the preset's", rich_help_panel=RUN
    ),
]
Accumulate = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Parts a process takes its share of a batch in.",
        show_default="the preset's",
        rich_help_panel=RUN,
    ),
]
Tracker = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="tensorboard, wandb, trackio, ... May be repeated.",
        rich_help_panel=RUN,
    ),
]
ListSettings = Annotated[bool | None, list_settings("tokensieve.train.selector.recipe")]


@train.command(cls=Verb)
def selector(
    features: Features,
    out: RunFolder,
    preset: Preset = "default",
    config: ConfigFile = None,
    steps: Steps = None,
    settings: Set = None,
    seed: Seed = 0,
    list_all: ListSettings = None,
    mix: Mix = None,
    validation: Validation = None,
    holdout: Holdout = 0.02,
    precision: Precision = None,
    accumulate: Accumulate = None,
    threads: Threads = None,
    tracker: Tracker = None,
) -> None:
    """Train a selector on stored features; goes on where an earlier run was cut off."""
    import torch

    from tokensieve.data.progress import resumable
    from tokensieve.data.store.features import FeatureStore
    from tokensieve.train.console import log_to_terminal
    from tokensieve.train.selector.recipe import make_recipe, read_settings
    from tokensieve.train.selector.run import train_selector

    log_to_terminal()
    if threads is not None:
        torch.set_num_threads(threads)
    store = FeatureStore(features)
    chosen = [*(read_settings(config) if config else []), *(settings or [])]
    named = {"steps": steps, "precision": precision, "accumulate": accumulate}
    chosen += [f"train.{name}={value}" for name, value in named.items() if value is not None]
    recipe = make_recipe(store.encoder, preset, chosen, parse_mix(mix or []), store.sources)
    judged = FeatureStore(validation) if validation else None
    with resumable("checkpoint"):
        train_selector(
            store, recipe, out, seed,
            validation=judged, holdout=holdout, trackers=tracker or [],
        )  # fmt: skip
    typer.echo(json.dumps({"selector": str(out / "selector"), "log": str(out / "log.jsonl")}))


train.command(cls=Verb)(fusion)


def parse_mix(texts: list[str]) -> dict[str, float] | None:
    """`["coco=115", "docvqa=9"]` as weights by source. Raises `ConfigError` for anything else."""
    mix: dict[str, float] = {}
    for text in texts:
        name, _, weight = text.rpartition("=")
        try:
            mix[name] = float(weight)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"Expected --mix SOURCE=WEIGHT, such as coco=115. Got {shown(text)}.")
    return mix or None
