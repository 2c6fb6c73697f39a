"""`tokensieve flops`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.cli.options import AsJson, parse_keep
from tokensieve.fields import check_names

if TYPE_CHECKING:
    from tokensieve.cost.models import VlmShape
    from tokensieve.nn.config import SelectorConfig

COUNT, PROMPT = "Count", "Prompt"

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A preset (a name that is none lists them), or a folder or OWNER/NAME on the hub, of "
        "which only the config is read.",
        rich_help_panel=PROMPT,
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Visual tokens of a picture before any go; rounded up to whole crops.",
        show_default="as the preset's checkpoint has them",
        rich_help_panel=PROMPT,
    ),
]
Keeps = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="SHARE|COUNT",
        help="One row each. May be repeated.",
        show_default="1, 0.5, 0.2, 0.1",
        rich_help_panel=COUNT,
    ),
]
Text = Annotated[
    int, typer.Option(min=0, metavar="N", help="Other tokens of it.", rich_help_panel=PROMPT)
]
New = Annotated[
    int, typer.Option(min=1, metavar="N", help="Tokens answered.", rich_help_panel=PROMPT)
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="A selector whose size counts.",
        show_default="one of the default recipe for that encoder",
        rich_help_panel=COUNT,
    ),
]
Convention = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="exact: all stages, two FLOPs a product. selector: products of LLM and "
        "sampler over visual tokens, as the selector's papers. stf: FLOPs of the LLM over them, "
        "as the paper of STF.",
        rich_help_panel=COUNT,
    ),
]
Papers = Annotated[
    bool,
    typer.Option("--papers", help="The papers' printed figures beside the formulas', and end."),
]


def flops(
    model: Model = "llava-next-7b",
    tokens: Tokens = None,
    keep: Keeps = None,
    text: Text = 64,
    new: New = 32,
    weights: Weights = None,
    convention: Convention = "exact",
    papers: Papers = False,
    as_json: AsJson = False,
) -> None:
    """Count what a picture costs, stage by stage, from sizes alone; nothing is loaded or run."""
    import torch

    from tokensieve.cost.models import CONVENTIONS, cache_of, paper_stages, stages
    from tokensieve.cost.printed import printed_figures
    from tokensieve.evaluate.console import flops_table, printed_table, show

    if papers:
        figures = printed_figures()
        if as_json:
            typer.echo(json.dumps([vars(one) for one in figures]))
        else:
            show(printed_table(figures))
        return
    check_names("convention", [convention], CONVENTIONS)
    shape = _shape(model, tokens)
    selector = _selector(shape, weights)
    rows: list[dict[str, Any]] = []
    for share in map(parse_keep, keep or ["1", "0.5", "0.2", "0.1"]):
        if convention == "exact":
            chosen = None if share == 1 else selector
            found = stages(shape, share, text=text, new=new, selector=chosen)
        else:
            found = paper_stages(shape, share, convention)
        size = cache_of(shape, share, text=text, new=new, dtype=torch.bfloat16)
        rows.append({"keep": share, "stages": found, "kv_bytes": size})
    if as_json:
        told = {"model": shape.name, "visual_tokens": shape.tokens, "convention": convention}
        typer.echo(json.dumps(told | {"rows": rows}))
    else:
        show(flops_table(f"{shape.name}: {shape.tokens:,} visual tokens", rows))


def _shape(model: str, tokens: int | None) -> VlmShape:
    """A preset, or what the config of that name says."""
    from tokensieve.cost.models import PRESETS, vlm_of_config
    from tokensieve.hf.load import NANO, config_of

    if not (set("/\\") & set(model) or Path(model).exists()):
        check_names("preset", [model], (*PRESETS, *NANO))
    shape = PRESETS[model] if model in PRESETS else vlm_of_config(model, config_of(model))
    return shape if tokens is None else shape.of_tokens(tokens)


def _selector(shape: VlmShape, weights: Path | None) -> SelectorConfig:
    """The config of `weights`, or the default recipe's for that encoder."""
    from tokensieve.cost.recipes import recipe_of, training_shape
    from tokensieve.nn.config import SelectorConfig
    from tokensieve.nn.pretrained import CONFIG, read_json

    if weights is not None:
        return SelectorConfig.from_dict(read_json(weights / CONFIG))
    return training_shape(shape.encoder, recipe_of("default")).selector
