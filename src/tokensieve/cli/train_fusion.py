"""`tokensieve train fusion`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

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
from tokensieve.errors import ConfigError

MODEL, DATA, PROJECTOR = "Model", "Data", "Projector"

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The VLM to fuse, or one fused before: a folder, a name on the hub, or 'nano'.",
        rich_help_panel=MODEL,
    ),
]
DataFile = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="JSON or JSONL of conversations, LLaVA's layout.",
        rich_help_panel=DATA,
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="FOLDER",
        help="Where the rows' pictures are; rows that name none need none.",
        rich_help_panel=DATA,
    ),
]
SkipBadRows = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows", help="Leave bad rows out and count them.", rich_help_panel=DATA
    ),
]
Preset = Annotated[
    str,
    typer.Option(metavar="NAME", help="stage1, stage2 or stage2-lora.", rich_help_panel=RECIPE),
]
Stage1 = Annotated[
    Path | None,
    typer.Option(
        "--projector",
        metavar="PATH",
        help="Projector of stage 1: its --out folder, or the file in it.",
        show_default="a new one",
        rich_help_panel=PROJECTOR,
    ),
]
Blocks = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Encoder blocks to read.", show_default="8", rich_help_panel=PROJECTOR
    ),
]
Kernel = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Side of the cells to fuse, in tokens.",
        show_default="2",
        rich_help_panel=PROJECTOR,
    ),
]
Fused = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tokens that a cell becomes.",
        show_default="1",
        rich_help_panel=PROJECTOR,
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="fusion, concat, avgpool, mlp, swiglu or quecc; own: the model's, as it is.",
        show_default="fusion",
        rich_help_panel=PROJECTOR,
    ),
]
Form = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="paper or release.",
        show_default="paper",
        rich_help_panel=PROJECTOR,
    ),
]
Skip = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Visual tokens skip layers of the LLM: p-mod or mod.",
        show_default="all read all",
        rich_help_panel=MODEL,
    ),
]
SkipKeep = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="With --skip, how much a layer reads: p-mod: the mean; mod: in every second layer.",
        show_default="0.5; mod: 0.2",
        rich_help_panel=MODEL,
    ),
]
Parallel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Share the model over processes: fsdp, zero2, zero3, or a JSON file.",
        rich_help_panel=RUN,
    ),
]
SieveBy = Annotated[
    str | None,
    typer.Option(
        "--sieve",
        metavar="METHOD",
        help="Leave visual tokens out in training; see `tokensieve methods`.",
        show_default="all are read",
        rich_help_panel=RECIPE,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        metavar="A..B",
        help="With --sieve, of each step: a budget drawn between two, or one as of `ask`.",
        rich_help_panel=RECIPE,
    ),
]
ListSettings = Annotated[bool | None, list_settings("tokensieve.train.fusion.recipe")]


def fusion(
    model: Model,
    data: DataFile,
    out: RunFolder,
    preset: Preset,
    images: Pictures = None,
    skip_bad_rows: SkipBadRows = False,
    config: ConfigFile = None,
    steps: Steps = None,
    settings: Set = None,
    sieve: SieveBy = None,
    keep: Keep = None,
    seed: Seed = 0,
    list_all: ListSettings = None,
    projector: Stage1 = None,
    blocks: Blocks = None,
    kernel: Kernel = None,
    fused: Fused = None,
    kind: Kind = None,
    form: Form = None,
    skip: Skip = None,
    skip_keep: SkipKeep = None,
    threads: Threads = None,
    parallel: Parallel = None,
) -> None:
    """Train a projector that fuses tokens, and the LLM; goes on where a run was cut off."""
    import torch

    from tokensieve.data.progress import resumable
    from tokensieve.hf.models.loaded import hush
    from tokensieve.train.console import log_to_terminal
    from tokensieve.train.fusion.base import load_base
    from tokensieve.train.fusion.recipe import make_recipe
    from tokensieve.train.fusion.run import Data, train_fusion
    from tokensieve.train.fusion.sharding import read_parallel
    from tokensieve.train.selector.recipe import read_settings

    log_to_terminal()
    hush()
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = [*(read_settings(config) if config else []), *(settings or [])]
    chosen += [f"train.steps={steps}"] if steps is not None else []
    chosen += [f"sieve.method={json.dumps(sieve)}"] if sieve is not None else []
    chosen += [f"sieve.keep={json.dumps(keep)}"] if keep is not None else []
    recipe = make_recipe(preset, chosen)
    shared = read_parallel(parallel)
    shape = {"blocks": blocks, "kernel": kernel, "fused": fused, "kind": kind, "form": form}
    given = {name: value for name, value in shape.items() if value is not None}
    with resumable("checkpoint"):
        loaded = load_base(model, given, projector, seed, depths_of(skip, skip_keep))
        made = train_fusion(
            loaded, Data(data, images), recipe, out, seed,
            skip_bad_rows=skip_bad_rows, parallel=shared,
        )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps({"model": str(made), "log": str(out / "log.jsonl")}))


def depths_of(skip: str | None, keep: float | None) -> tuple[str, float] | None:
    """Kind and keep of tokens that skip layers; None: none do. Raises `ConfigError`."""
    if skip is None:
        if keep is not None:
            raise ConfigError(f"Expected --skip NAME beside --skip-keep. Got {keep} alone.")
        return None
    return skip, keep if keep is not None else 0.2 if skip == "mod" else 0.5
