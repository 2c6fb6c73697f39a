"""`tokensieve demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(metavar="FILE", help="Where to write the overlay.")]


def demo(out: Out = Path("out/demo.png")) -> None:
    """See what is kept and answered: the embedded model on shipped pictures, offline."""
    import torch

    from tokensieve.evaluate.demo import main as run_demo

    torch.set_num_threads(1)  # so small a model is slower on several, most of all on busy cores
    run_demo(out)
