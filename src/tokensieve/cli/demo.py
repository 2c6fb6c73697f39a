"""`tokensieve demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(metavar="FILE", help="Where to write the overlay.")]


def demo(out: Out = Path("out/demo.png")) -> None:
    """See what is kept and answered: the embedded model on shipped pictures, offline."""
    from tokensieve.evaluate.demo import main as run_demo

    run_demo(out)
