"""`tokensieve train fusion`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer


def _settings(asked: bool | None) -> None:
    if asked:
        from tokensieve.train.fusion.recipe import SECTIONS
        from tokensieve.train.settings import describe

        typer.echo(describe(SECTIONS))
        raise typer.Exit


def fusion(
    model: Annotated[
        str, typer.Option(help="The VLM to fuse, or one fused before: a folder, hub name or nano.")
    ],
    data: Annotated[Path, typer.Option(help="JSON or JSONL of conversations, LLaVA's layout.")],
    out: Annotated[Path, typer.Option(help="Folder for model, log and checkpoints.")],
    preset: Annotated[str, typer.Option(help="stage1, stage2, stage2-lora.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder that the rows' pictures are relative to.")
    ] = None,
    projector: Annotated[
        Path | None, typer.Option(help="Projector of stage 1: its --out folder, or the file in it.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(help="Encoder blocks to read (8).")] = None,
    kernel: Annotated[int | None, typer.Option(help="Side of the cells to fuse (2).")] = None,
    fused: Annotated[int | None, typer.Option(help="Tokens that a cell becomes (1).")] = None,
    kind: Annotated[str | None, typer.Option(help="fusion (that), concat, avgpool, mlp.")] = None,
    form: Annotated[str | None, typer.Option(help="paper (that) or release.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file of settings, on top of the preset.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="One setting; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order of rows and dropout.")] = 0,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")
    ] = False,
    parallel: Annotated[
        str | None,
        typer.Option(help="Share the model over processes: fsdp, zero2, zero3, or a JSON file."),
    ] = None,
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
    """Train a projector that fuses tokens, and the LLM; goes on where a run was cut off."""
    import torch

    from tokensieve.data.progress import resumable
    from tokensieve.hf.models.loaded import hush
    from tokensieve.train.console import log_to_terminal
    from tokensieve.train.fusion.base import load_base
    from tokensieve.train.fusion.recipe import make_recipe
    from tokensieve.train.fusion.run import train_fusion
    from tokensieve.train.fusion.sharding import read_parallel
    from tokensieve.train.selector.recipe import read_settings

    log_to_terminal()
    hush()
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = [*(read_settings(config) if config else []), *(settings or [])]
    chosen += [f"train.steps={steps}"] if steps is not None else []
    recipe = make_recipe(preset, chosen)
    shared = read_parallel(parallel)
    shape = {"blocks": blocks, "kernel": kernel, "fused": fused, "kind": kind, "form": form}
    given = {name: value for name, value in shape.items() if value is not None}
    with resumable("checkpoint"):
        loaded = load_base(model, given, projector, seed)
        made = train_fusion(
            loaded, data, images, recipe, out, seed, skip_bad_rows=skip_bad_rows, parallel=shared
        )
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps({"model": str(made), "log": str(out / "log.jsonl")}))
