"""`tokensieve view`."""

from __future__ import annotations

from typing import Annotated

import typer

from tokensieve.cli.ask import (
    AskFirst,
    Dtype,
    MaxNewTokens,
    Options,
    Pool,
    Positions,
    Seed,
    Weights,
)
from tokensieve.cli.options import AskDevice, Model, load_here, parse_keep

PAGE = "Page"

Methods = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Methods chosen at first; others can be on the page.",
        rich_help_panel=PAGE,
    ),
]
Keep = Annotated[
    str,
    typer.Option(metavar="SHARE", help="Where the slider begins.", rich_help_panel=PAGE),
]
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Who is let in: 0.0.0.0 is all of your network.",
        rich_help_panel=PAGE,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        metavar="N",
        help="Where to listen.",
        show_default="the first free one from 7860",
        rich_help_panel=PAGE,
    ),
]


def view(
    model: Model = "nano",
    device: AskDevice = None,
    dtype: Dtype = "auto",
    methods: Methods = "selector,divprune,random,full",
    keep: Keep = "0.2",
    option: Options = None,
    weights: Weights = None,
    seed: Seed = 0,
    positions: Positions = "keep",
    pool: Pool = "crop",
    ask_first: AskFirst = False,
    max_new_tokens: MaxNewTokens = 32,
    host: Host = "127.0.0.1",
    port: Port = None,
) -> None:
    """Look in a browser at what methods keep of your pictures: pip install 'tokensieve[view]'."""
    from tokensieve.data.extras import need
    from tokensieve.evaluate.ask import Settings
    from tokensieve.evaluate.options import named_methods, read_options

    first, _, others = methods.partition(",")
    names = list(dict.fromkeys(named_methods(first, others)))
    plan, by_method = read_options(option or (), names)
    settings = Settings(
        parse_keep(keep),
        positions,
        pool,
        max_new_tokens=max_new_tokens,
        ask_first=ask_first,
        options={"seed": seed} | ({} if weights is None else {"weights": weights}),
        by_method=by_method,
        **plan,
    )
    need("gradio", "view", "in which the viewer runs")
    from tokensieve.view.app import build, launch
    from tokensieve.view.viewer import Viewer

    viewer = Viewer(load_here(model, dtype, device), settings)
    viewer.warm()
    page = build(viewer, names)
    address = launch(page, host, port, wait=False)
    typer.echo(f"Look at {address} (Ctrl-C ends it)")
    page.block_thread()
