"""The command line: verbs only. Anything heavy is imported by the verb that needs it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from tokensieve import __version__
from tokensieve.cli.ask import ask
from tokensieve.cli.bench import bench
from tokensieve.cli.calibrate import calibrate
from tokensieve.cli.demo import demo
from tokensieve.cli.evaluate import evaluate
from tokensieve.cli.export import export
from tokensieve.cli.extract import extract
from tokensieve.cli.flops import flops
from tokensieve.cli.help import Verb, Verbs
from tokensieve.cli.methods import methods
from tokensieve.cli.train import train
from tokensieve.cli.view import view
from tokensieve.errors import TokensieveError

HELP = """Make any vision-language model read fewer visual tokens.

First, offline, with the small model and the pictures in the package:

\b
  tokensieve demo
  tokensieve ask example:cluttered "Read XR." --keep 0.3
  tokensieve ask example:page "Read MW." --compare random
  tokensieve methods

Then a model and a picture of yours, with a method that needs no training:

\b
  tokensieve ask PICTURE QUESTION \\
      --model NAME --method divprune
"""

app = typer.Typer(
    cls=Verbs,
    name="tokensieve",
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
    """Say a note about a picture or a folder in one line; leave any other warning to `other`."""
    if category.__name__ in ("PictureNote", "FolderNote"):
        _say(f"note: {message}")
    else:
        other(message, category, *where)


def _say(text: str) -> None:
    print(f"tokensieve: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201


def _version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"tokensieve {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _root(
    version: Annotated[
        bool | None,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say the version, and end."
        ),
    ] = None,
) -> None:
    """Options of no verb."""


for verb in (ask, view, methods, demo, extract, flops, bench, calibrate, export):
    app.command(cls=Verb)(verb)
app.command("eval", cls=Verb)(evaluate)
app.add_typer(train, name="train")
