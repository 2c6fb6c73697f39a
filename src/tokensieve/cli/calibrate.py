"""`tokensieve calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.evaluate import ANSWER, Dtype, Limit, Most, Options, Positions, Suite, Weights
from tokensieve.cli.options import OUTPUT, Device, Model, load_here

PROMISE = "Promise"

Method = Annotated[str, typer.Option(metavar="NAME", help="A method.", rich_help_panel=PROMISE)]
Keeps = Annotated[
    str,
    typer.Option(
        metavar="SHARE,...",
        help="Shares to try, the largest first, until one does not hold.",
        rich_help_panel=PROMISE,
    ),
]
MaxLoss = Annotated[
    float,
    typer.Option(
        metavar="SHARE", help="Answers that may differ from those of all tokens.",
        rich_help_panel=PROMISE,
    ),
]  # fmt: skip
Confidence = Annotated[
    float, typer.Option(metavar="SHARE", help="How surely.", rich_help_panel=PROMISE)
]
Sure = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Answers whose least likely token is less probable are asked again with all tokens, "
        "by ask_until_sure: fewer tokens under the same promise.",
        show_default="none is",
        rich_help_panel=PROMISE,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="The calibration, for sieve(..., keep='auto', calibration=FILE); the answers lie "
        "beside it, in FILE.records.",
        rich_help_panel=OUTPUT,
    ),
]


def calibrate(
    out: Out,
    suite: Suite,
    model: Model = "nano",
    method: Method = "selector",
    keep: Keeps = "0.8,0.6,0.5,0.4,0.3,0.2,0.1",
    max_loss: MaxLoss = 0.02,
    confidence: Confidence = 0.95,
    sure: Sure = None,
    limit: Limit = None,
    option: Options = None,
    weights: Weights = None,
    positions: Positions = "keep",
    max_new_tokens: Most = None,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Find the smallest keep whose answers agree with those of all tokens, with a guarantee.

    It is for questions like those of the suite, whose right answers need not be known.
    """
    from tokensieve.data.progress import resumable
    from tokensieve.evaluate.ask import Settings
    from tokensieve.evaluate.calibrate import Promise
    from tokensieve.evaluate.calibrate import calibrate as run
    from tokensieve.evaluate.options import named_methods, read_options
    from tokensieve.evaluate.questions import load_questions

    promise = Promise(max_loss, confidence, tuple(map(_share, keep.split(","))), sure)
    (name,) = named_methods(method)
    plan, by_method = read_options(option or (), [name])
    settings = Settings(
        positions=positions,
        max_new_tokens=max_new_tokens or ANSWER,
        options={} if weights is None else {"weights": weights},
        by_method=by_method,
        **plan,
    )
    questions = load_questions(suite, limit, answered=False)
    loaded = load_here(model, dtype, device)
    records = out.with_name(out.name + ".records")
    with resumable("question"):
        found = run(loaded, questions, name, promise, settings, records, typer.echo)
    found.to_file(out)
    for group, share in found.keep.items():
        last = found.tried[group][-1]
        typer.echo(
            f"{group}: keep {share:g}; at {last.keep:g} {last.differed} of {last.asked} differed"
        )
    typer.echo(f"At most {max_loss:.1%} differ, with confidence {confidence:g}: {out}")


def _share(text: str) -> float:
    from tokensieve.errors import BudgetError

    try:
        return float(text)
    except ValueError:
        raise BudgetError(f"Expected shares such as 0.5,0.2. Got '{text}'.") from None
