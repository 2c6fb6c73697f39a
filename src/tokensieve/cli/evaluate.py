"""`tokensieve eval`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.options import MODEL, OUTPUT, Device, Model, parse_keep

COMPARE, SUITE = "What is compared", "Questions"

Suite = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="nano (generated pictures, for the models of the package), or a JSONL file: image, "
        "question, answer (or answers), and where wanted metric and group.",
        rich_help_panel=SUITE,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="The first N questions of each group.",
        show_default="all; of nano 50",
        rich_help_panel=SUITE,
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="exact, anls, relaxed, choice, yes-no or vqa, where a line names none.",
        rich_help_panel=SUITE,
    ),
]
Methods = Annotated[str, typer.Option(metavar="NAME,...", help="Methods.", rich_help_panel=COMPARE)]
Keeps = Annotated[
    str,
    typer.Option(metavar="SHARE|COUNT,...", help="What is kept.", rich_help_panel=COMPARE),
]
Seeds = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Of methods that draw.", rich_help_panel=COMPARE),
]
Alone = Annotated[
    bool,
    typer.Option(
        "--alone",
        help="Without all tokens, no image, random, stride, avgpool and downsample, which else "
        "stand beside.",
        rich_help_panel=COMPARE,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="As of `ask`.", rich_help_panel=COMPARE),
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Of a trained method.", rich_help_panel=COMPARE),
]
Positions = Annotated[
    str, typer.Option(metavar="NAME", help="keep or renumber.", rich_help_panel=COMPARE)
]
Most = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Most tokens of an answer.", rich_help_panel=MODEL),
]
Dtype = Annotated[
    str,
    typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16.", rich_help_panel=MODEL),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Where records, table.md, table.csv and curves.png go.",
        rich_help_panel=OUTPUT,
    ),
]


def evaluate(
    out: Out,
    model: Model = "nano",
    suite: Suite = "nano",
    methods: Methods = "selector",
    keep: Keeps = "0.1,0.2,0.4",
    seeds: Seeds = 3,
    alone: Alone = False,
    limit: Limit = None,
    metric: Metric = "exact",
    option: Options = None,
    weights: Weights = None,
    positions: Positions = "keep",
    max_new_tokens: Most = 32,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Ask questions with right answers by many methods: records, a table, a picture.

    Run it again and it goes on where it was cut off; run it twice at once and both share the work.
    """
    import torch

    from tokensieve.data.progress import resumable
    from tokensieve.evaluate.ask import Settings
    from tokensieve.evaluate.cells import BESIDE, cells_of, run_cells
    from tokensieve.evaluate.compare import curves, markdown, table
    from tokensieve.evaluate.options import named_methods, read_options
    from tokensieve.evaluate.questions import load_questions
    from tokensieve.files import write_text
    from tokensieve.hf.load import NANO, load_model
    from tokensieve.hf.models.loaded import hush

    names = [name for one in methods.split(",") for name in named_methods(one)]
    if not alone:
        names = list(dict.fromkeys([*BESIDE[:2], *names, *BESIDE]))
    plan, by_method = read_options(option or (), names)
    own = {} if weights is None else {"weights": weights}
    settings = Settings(
        positions=positions, max_new_tokens=max_new_tokens, options=own, by_method=by_method, **plan
    )
    cells = cells_of(names, [parse_keep(text.strip()) for text in keep.split(",")], seeds)
    questions = load_questions(suite, limit, metric)
    hush()
    if model.partition("+")[0] in NANO:
        torch.set_num_threads(1)  # so small a model is slower on several
    loaded = load_model(model, dtype, device)

    with resumable("question"):
        files = run_cells(loaded, questions, cells, settings, out / "records", typer.echo)
    write_text(out / "table.md", markdown(files))
    write_text(out / "table.csv", table(files))
    if find_spec("matplotlib"):
        curves(files, out / "curves.png")
    typer.echo(f"Made from {len(files)} records in {out}: table.md, table.csv, curves.png.")
