"""`tokensieve demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Where to write the overlay.")] = Path("out/demo.png"),
) -> None:
    """Run the embedded model on shipped pictures."""
    from tokensieve.evaluate.demo import main as run_demo

    run_demo(out)
