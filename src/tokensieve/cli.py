"""The command line: verbs only. Anything heavy is imported by the verb that needs it."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tokensieve import __version__
from tokensieve.budget import check_keep
from tokensieve.errors import BudgetError, TokensieveError

app = typer.Typer(
    name="tokensieve",
    help="Make any vision-language model read fewer visual tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take half of the time `--help` may take
)


def main() -> None:
    """Run the command line; a `TokensieveError` becomes one line on stderr and exit code 2."""
    with warnings.catch_warnings():
        warnings.showwarning = partial(_note, warnings.showwarning)
        try:
            app()
        except TokensieveError as error:
            _say(str(error))
            sys.exit(2)


def _note(other: Callable[..., None], message: Any, category: type[Warning], *where: Any) -> None:
    """Say a note about a picture in one line; leave any other warning to `other`."""
    if category.__name__ == "PictureNote":
        _say(f"note: {message}")
    else:
        other(message, category, *where)


def _say(text: str) -> None:
    print(f"tokensieve: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201


def _version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"tokensieve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the version."),
    ] = None,
) -> None:
    """Make any vision-language model read fewer visual tokens."""


@app.command()
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
        typer.Option(help="Fraction in (0, 1], or a whole number of tokens from 2. 1 keeps all."),
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
) -> None:
    """Ask a model about a picture, with fewer visual tokens."""
    from tokensieve.data.files import check_picture_path
    from tokensieve.data.pictures import open_picture
    from tokensieve.eval.ask import Settings, run, write_overlay
    from tokensieve.eval.console import answers_table, show
    from tokensieve.eval.models import hush, load_model
    from tokensieve.methods.registry import method_class

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
    picture = open_picture(image)
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


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the methods and what each needs."""
    from tokensieve.methods.registry import method_class, method_names

    rows = []
    for name in method_names():
        kind = method_class(name)
        rows.append(
            {
                "name": name,
                "site": kind.site_text(),
                "trained": kind.trained,
                "needs": sorted(kind.needs),
                "paper": kind.paper,
                "about": _summary(kind.__doc__ or ""),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        from tokensieve.eval.console import methods_table, show

        show(methods_table(rows))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the overlay.")] = Path("out/demo.png"),
) -> None:
    """Run the embedded model on shipped pictures."""
    from tokensieve.eval.demo import main as run_demo

    run_demo(out)


def parse_keep(text: str) -> float | int:
    """`--keep` as `check_keep` wants it: "3" a count, "0.3" a fraction. Raises `BudgetError`."""
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return check_keep(value)
    raise BudgetError(
        f"Expected `keep` as a fraction in (0, 1] or a whole number of tokens. Got '{text}'."
    )


def _summary(docstring: str) -> str:
    """The first paragraph on one line, without its marks of reference."""
    return " ".join(docstring.strip().split("\n\n")[0].split()).replace(" [1]", "")
