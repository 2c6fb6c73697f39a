"""`tokensieve ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.budget import check_keep
from tokensieve.errors import BudgetError


def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")],
    model: Annotated[
        str,
        typer.Option(help="'nano' (embedded), a model directory, or a name on the hub."),
    ] = "nano",
    method: Annotated[
        str, typer.Option(help="How to choose tokens; see `tokensieve methods`.")
    ] = "selector",
    keep: Annotated[
        str,
        typer.Option(
            help="Fraction in (0, 1]; or, from 2, the most tokens a picture keeps. 1 keeps all."
        ),
    ] = "0.4",
    compare: Annotated[
        str, typer.Option(help="More methods to run, by commas: selector,random,full.")
    ] = "",
    overlay: Annotated[
        Path | None, typer.Option(help="Write a picture of what was kept to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw by chance.")] = 0,
    weights: Annotated[
        str | None, typer.Option(help="Weights of a trained method, if not the shipped ones.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="'keep' the positions of kept tokens, or 'renumber' them.")
    ] = "keep",
    pool: Annotated[
        str, typer.Option(help="Spend the budget over each 'crop', the 'image' or the 'prompt'.")
    ] = "crop",
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of the picture.")] = 89_478_485,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
) -> None:
    """Ask a model about a picture, with fewer visual tokens."""
    from tokensieve.data.pictures.decode import Limits, open_picture, raise_pillow_limit
    from tokensieve.evaluate.ask import Settings, run, write_overlay
    from tokensieve.evaluate.console import answers_table, show
    from tokensieve.hf.load import load_model
    from tokensieve.hf.models.loaded import hush
    from tokensieve.methods.registry import method_class
    from tokensieve.viz.sheet import check_picture_path

    names = [name.strip() for name in compare.split(",") if name.strip()]
    for name in (method, *names):
        method_class(name)
    settings = Settings(
        keep=parse_keep(keep),
        positions=positions,
        pool=pool,
        max_new_tokens=max_new_tokens,
        options={"seed": seed} | ({} if weights is None else {"weights": weights}),
    )
    raise_pillow_limit(max_pixels)
    picture = open_picture(image, Limits(max_pixels))
    if overlay is not None:
        check_picture_path(overlay, source=image)
    hush()
    loaded = load_model(model)
    answers = run(loaded, picture, question, [method, *names], settings)
    if as_json:
        result = answers[0].as_json() | {"picture": str(image), "question": question}
        if names:
            by_name = {answer.method: answer.as_json() for answer in answers}
            result["compare"] = [by_name[name] for name in names]
        typer.echo(json.dumps(result))
    else:
        show(answers_table(question, answers))
    if overlay is not None:
        write_overlay(overlay, loaded.processor, picture, question, answers)
        if not as_json:
            typer.echo(f"Overlay: {overlay}")


def parse_keep(text: str) -> float | int:
    """`--keep` as `check_keep` wants it: "3" a count, "0.3" a fraction. Raises `BudgetError`."""
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return check_keep(value)
    raise BudgetError(
        f"Expected `keep` as a fraction in (0, 1] or a whole number of tokens from 2. Got "
        f"'{text}'. Pass --keep 0.25 or --keep 64."
    )
