"""`tokensieve eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.options import (
    MODEL,
    OUTPUT,
    Device,
    Model,
    check_options,
    load_here,
    parse_keep,
)

Write = Callable[[Sequence[Path]], str]
COMPARE, SUITE = "What is compared", "Questions"
ANSWER = 32  # tokens of an answer at most

Suite = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="nano (generated pictures, for the models of the package), receipts (what is kept of "
        "the words on documents, see --receipts), keys (what they say, asked), or a JSONL file: "
        "image, question, answer (or answers), and where wanted metric, group and boxes (where the "
        "answer stands).",
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
Receipts = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Of the suites receipts and keys: img/NAME.jpg and box/NAME.json (or SROIE's .txt).",
        rich_help_panel=SUITE,
    ),
]
TextHeight = Annotated[
    float | None,
    typer.Option(
        metavar="PIXELS",
        help="Receipts scaled so that a line is about so tall, in tiles of the model's input.",
        show_default="as the processor cuts; nano 17",
        rich_help_panel=SUITE,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of a file: exact, anls, relaxed, choice, yes-no or vqa, where a line names none.",
        show_default="exact",
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
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Most tokens of an answer.",
        show_default="32",
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16.", rich_help_panel=MODEL),
]
Overlays = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Pictures of so many questions that each record loses, in lost/: what was dropped, "
        "and where the answer stands.",
        rich_help_panel=OUTPUT,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Where records, table.md, the same as CSV and pictures go.",
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
    metric: Metric = None,
    receipts: Receipts = None,
    text_height: TextHeight = None,
    option: Options = None,
    weights: Weights = None,
    positions: Positions = "keep",
    max_new_tokens: Most = None,
    dtype: Dtype = "auto",
    device: Device = None,
    overlays: Overlays = 0,
) -> None:
    """Ask questions with right answers by many methods: records, a table, a picture.

    Run it again and it goes on where it was cut off; run it twice at once and both share the work.
    """
    from tokensieve.data.progress import resumable
    from tokensieve.evaluate import legible_table, lost
    from tokensieve.evaluate.ask import Settings
    from tokensieve.evaluate.cells import BESIDE, cells_of, run_cells
    from tokensieve.evaluate.legible import RECEIPTS, TEXT_HEIGHT, legible, of_pictures
    from tokensieve.evaluate.options import named_methods, read_options
    from tokensieve.evaluate.questions import KEYS, NANO, load_questions
    from tokensieve.evaluate.receipts import load_receipts

    passed_over = {
        "--receipts": receipts is not None and suite not in (RECEIPTS, KEYS),
        "--text-height": text_height is not None and suite != RECEIPTS,
        "--overlays": overlays > 0 and suite == RECEIPTS,
        "--metric": metric is not None and suite in (NANO, RECEIPTS, KEYS),
        "--max-new-tokens": max_new_tokens is not None and suite == RECEIPTS,
    }
    check_options(f"--suite {suite}", passed_over)
    names = [name for one in methods.split(",") for name in named_methods(one)]
    if not alone:
        names = list(dict.fromkeys([*BESIDE[:2], *names, *BESIDE]))
    plan, by_method = read_options(option or (), names)
    own = {} if weights is None else {"weights": weights}
    settings = Settings(
        positions=positions,
        max_new_tokens=max_new_tokens or ANSWER,
        options=own,
        by_method=by_method,
        **plan,
    )
    cells = cells_of(names, [parse_keep(text.strip()) for text in keep.split(",")], seeds)
    if suite == RECEIPTS:
        documents = load_receipts(receipts, limit)
        loaded = load_here(model, dtype, device)
        if text_height is None:
            text_height = TEXT_HEIGHT.get(model)
        with resumable("document"):
            files = legible(loaded, documents, list(of_pictures(cells)), settings,
                            out / "records", text_height, typer.echo)  # fmt: skip
        _tables(out, files, legible_table.markdown, legible_table.table)
        return
    questions = load_questions(suite, limit, metric or "exact", receipts=receipts)
    loaded = load_here(model, dtype, device)

    with resumable("question"):
        files = run_cells(loaded, questions, cells, settings, out / "records", typer.echo)
    if overlays:
        made = lost.overlays(loaded, questions, files, settings, out / "lost", overlays)
        typer.echo(f"{made} questions that were lost, drawn: {out / 'lost'}")
    _compared(out, files)


def _compared(out: Path, files: Sequence[Path]) -> None:
    """Everything that records of answers come to."""
    from tokensieve.evaluate import again, compare, hard, layout, lost, plots
    from tokensieve.files import write_text

    more = ", layout.csv"
    write_text(out / "layout.csv", layout.table(files))
    if find_spec("matplotlib") is not None:
        plots.curves(files, out / "curves.png")
        several = plots.by_group(files, out / "benchmarks.png")
        more += ", curves.png" + (", benchmarks.png" if several else "")
    if lost.lost_of(files):
        write_text(out / "lost.csv", lost.table(files))
    if list(hard.hard_of(files)):
        write_text(out / "hard.csv", hard.table(files))
    _tables(
        out,
        files,
        lambda own: "".join(part.markdown(own) for part in (compare, layout, hard, again, lost)),
        compare.table,
        more,
    )


def _tables(
    out: Path, files: Sequence[Path], markdown: Write, table: Write, more: str = ""
) -> None:
    from tokensieve.files import write_text

    write_text(out / "table.md", markdown(files))
    write_text(out / "table.csv", table(files))
    typer.echo(f"Made from {len(files)} records in {out}: table.md, table.csv{more}.")
