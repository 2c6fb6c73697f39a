"""`tokensieve bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.evaluate import Alone, Keeps, Methods, Options, Weights
from tokensieve.cli.options import (
    MODEL,
    OUTPUT,
    RUN,
    AsJson,
    Device,
    Threads,
    load_here,
    parse_keep,
)

PROMPT = "Prompt"
TEXT = 64  # other tokens of a preset's prompt

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A preset of `flops`, built with random weights, or a model as of `ask`.",
        rich_help_panel=MODEL,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="N|all",
        help="Layers of a preset's encoder and LLM that run; times stand for all of them.",
        show_default="all on a GPU, else 2",
        rich_help_panel=MODEL,
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Visual tokens of a preset's picture, rounded up to whole crops.",
        show_default="as its checkpoint has them",
        rich_help_panel=PROMPT,
    ),
]
Batch = Annotated[
    int, typer.Option(min=1, metavar="N", help="Prompts at once.", rich_help_panel=PROMPT)
]
Text = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Other tokens of one, of a preset.",
        show_default="64",
        rich_help_panel=PROMPT,
    ),
]
New = Annotated[
    int, typer.Option(min=1, metavar="N", help="Tokens answered.", rich_help_panel=PROMPT)
]
Rounds = Annotated[
    int, typer.Option(min=1, metavar="N", help="Runs of each, in turns.", rich_help_panel=RUN)
]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a record.", rich_help_panel=OUTPUT)
]


def bench(
    model: Model = "llava-next-7b",
    methods: Methods = "selector,divprune",
    keep: Keeps = "0.5,0.22",
    alone: Alone = False,
    option: Options = None,
    weights: Weights = None,
    batch: Batch = 1,
    tokens: Tokens = None,
    text: Text = None,
    new: New = 8,
    layers: Layers = None,
    rounds: Rounds = 3,
    threads: Threads = None,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a picture costs, stage by stage, with what the FLOPs promise beside it."""
    import torch

    from tokensieve.evaluate import records
    from tokensieve.evaluate.ask import Settings
    from tokensieve.evaluate.bench import Bench, check_tokens, layers_of, record_of
    from tokensieve.evaluate.bench import bench as run
    from tokensieve.evaluate.cells import cells_of
    from tokensieve.evaluate.console import bench_table, show
    from tokensieve.evaluate.options import named_methods, read_options
    from tokensieve.files import make_folder
    from tokensieve.folders import check_ours
    from tokensieve.hf.load import check_device

    names = [name for one in methods.split(",") for name in named_methods(one)]
    names = list(dict.fromkeys(names if alone else [*names, "random"]))
    plan, by_method = read_options(option or (), names)
    own = {} if weights is None else {"weights": weights}
    settings = Settings(options=own, by_method=by_method, **plan)
    cells = cells_of(names, [parse_keep(share.strip()) for share in keep.split(",")], 1)
    if out is not None:
        check_ours(make_folder(out.parent), records.RECORDS)
    if threads is not None:
        torch.set_num_threads(threads)
    if check_tokens(model, tokens, layers, text):
        text = text or TEXT
        where = torch.device(check_device(device))
        one = Bench.preset(model, tokens=tokens, text=text, batch=batch,
                           layers=layers_of(layers, where), device=where)  # fmt: skip
    else:
        one = Bench.loaded(load_here(model, "auto", device), batch)
    quiet = as_json or None
    rows = run(one, cells, settings, new=new, rounds=rounds,
               tell=lambda said: None if quiet else typer.echo(said, err=True))  # fmt: skip
    if out is not None:
        told = {"methods": names, "new": new, "rounds": rounds, "text": text}
        records.write(out, record_of(one, rows, **told))
    if as_json:
        typer.echo(json.dumps({"model": one.name, "rows": [vars(row) for row in rows]}))
    else:
        show(bench_table(one, rows))
