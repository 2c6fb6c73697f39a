"""`tokensieve train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.train_fusion import fusion
from tokensieve.errors import ConfigError
from tokensieve.fields import shown

train = typer.Typer(
    help="Train what learns: a selector for a frozen encoder, a projector that fuses tokens.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _settings(asked: bool | None) -> None:
    if asked:
        from tokensieve.train.selector.recipe import SECTIONS
        from tokensieve.train.settings import describe

        typer.echo(describe(SECTIONS))
        raise typer.Exit


@train.command()
def selector(
    features: Annotated[
        list[Path], typer.Option(help="Feature stores; see `tokensieve extract`. May be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for weights, log and checkpoints.")],
    preset: Annotated[
        str, typer.Option(help="default, when-less-is-enough, adaptive.")
    ] = "default",
    config: Annotated[
        Path | None, typer.Option(help="JSON file of settings, on top of the preset.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="One setting; may be repeated."),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE=WEIGHT", help="How often a source is drawn; repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the batches and the noise.")] = 0,
    precision: Annotated[str | None, typer.Option(help="no or bf16.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts a process takes its share of a batch in.")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb, trackio, ...; may be repeated.")
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Stores to validate on, instead of held-out crops.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the pictures held out for validation.")
    ] = 0.02,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; as PyTorch chooses if not given.")
    ] = None,
    list_settings: Annotated[
        bool | None,
        typer.Option(
            "--list-settings",
            callback=_settings,
            is_eager=True,
            help="Say every setting and its default, and end.",
        ),
    ] = None,
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


train.command()(fusion)


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
