"""`tokensieve ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.cli.options import (
    MODEL,
    OUTPUT,
    AsJson,
    AskDevice,
    MaxPixels,
    Model,
    load_here,
    parse_keep,
)
from tokensieve.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokensieve.evaluate.answer import Answer, Refused

TOKENS, ANSWER, VIDEO = "Which tokens", "Answer", "Video"

Images = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE",
        help="A picture file, or example:page (cluttered, scene, mixed; typeset, for nano2).",
    ),
]
Question = Annotated[
    str, typer.Argument(metavar="QUESTION", help="What to ask of all of them, in quotes.")
]
Videos = Annotated[
    list[str] | None,
    typer.Option(
        "--video",
        metavar="FILE",
        help="A video, or a folder of frames, behind the pictures. May be repeated.",
        rich_help_panel=VIDEO,
    ),
]
Frames = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Frames of each video.", rich_help_panel=VIDEO),
]
Fps = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="No more of them than so many a second.",
        show_default="as many as --frames",
        rich_help_panel=VIDEO,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto (as the weights are stored, but "
        "float32 where the device is slow in that), float32, bfloat16 or float16.",
        rich_help_panel=MODEL,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="How to choose; see `tokensieve methods`.", rich_help_panel=TOKENS
    ),
]
Keep = Annotated[
    str,
    typer.Option(
        metavar="SHARE|COUNT",
        help="Share in (0, 1], 1 for all; or, from 2, the most tokens a picture keeps.",
        rich_help_panel=TOKENS,
    ),
]
Compare = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="More methods, asked the same: divprune,random,full. One that does not fit says so "
        "in its row; where that is --method itself, the exit code is 2.",
        rich_help_panel=TOKENS,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="A method's own option, or layer, recycle, cover, site, newlines, frames, trusted of "
        "any. May be repeated.",
        rich_help_panel=TOKENS,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Weights of a trained method: a folder, a name on the hub, or of weights that ship.",
        show_default="those in the package",
        rich_help_panel=TOKENS,
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="Of methods that draw by chance.", rich_help_panel=TOKENS),
]
Positions = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="'keep' the positions of kept tokens, or 'renumber' them.",
        rich_help_panel=TOKENS,
    ),
]
Pool = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Spend the budget over each 'crop', the 'image' or the 'prompt'.",
        rich_help_panel=TOKENS,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.", rich_help_panel=ANSWER)
]
AskFirst = Annotated[
    bool,
    typer.Option(
        "--ask-first",
        help="Put the question before the pictures too, as conditional methods need it.",
        rich_help_panel=TOKENS,
    ),
]
Overlay = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a picture of what was kept; of a video also .gif, or .webp, which move.",
        rich_help_panel=OUTPUT,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html",
        help="Write a page to look at: what each method kept at every keep, answers and costs. One "
        "file, no server; asks each method ten times more.",
        rich_help_panel=OUTPUT,
    ),
]


def ask(
    images: Images = None,
    question: Question = ...,  # type: ignore[assignment]  # what typer takes for "must be given"
    video: Videos = None,
    frames: Frames = 8,
    fps: Fps = None,
    model: Model = "nano",
    device: AskDevice = None,
    dtype: Dtype = "auto",
    method: Method = "selector",
    keep: Keep = "0.4",
    compare: Compare = "",
    option: Options = None,
    weights: Weights = None,
    seed: Seed = 0,
    positions: Positions = "keep",
    pool: Pool = "crop",
    ask_first: AskFirst = False,
    max_pixels: MaxPixels = 89_478_485,
    max_new_tokens: MaxNewTokens = 64,
    overlay: Overlay = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model about pictures and videos, with fewer visual tokens."""
    from tokensieve.evaluate.answer import Refused
    from tokensieve.evaluate.ask import Settings, run
    from tokensieve.evaluate.console import answers_table, show
    from tokensieve.evaluate.options import named_methods, read_options
    from tokensieve.evaluate.overlay import check_overlay, check_overlay_path, write_overlay
    from tokensieve.evaluate.pictures import open_all
    from tokensieve.view.look import Look
    from tokensieve.view.report import check_report_path, write_report

    images, videos = images or [], video or []
    if not images and not videos:
        raise typer.BadParameter(
            f"Expected IMAGE... QUESTION, or QUESTION --video FILE. Got one text, '{question}'. "
            "Put the question last, in quotes."
        )
    names = named_methods(method, compare)
    plan, by_method = read_options(option or (), names)
    options = {"seed": seed} | ({} if weights is None else {"weights": weights})
    settings = Settings(
        parse_keep(keep),
        positions,
        pool,
        max_new_tokens=max_new_tokens,
        ask_first=ask_first,
        options=options,
        by_method=by_method,
        **plan,
    )
    pictures = open_all(images, max_pixels, videos, frames, fps)
    if overlay is not None:
        check_overlay_path(overlay, images, videos)
    if report is not None:
        check_report_path(report)
    loaded = load_here(model, dtype, device)
    if overlay is not None:
        check_overlay(loaded, pictures, question)
    answers = run(loaded, pictures, question, names, settings)
    if as_json:
        told = {"question": question, **_sources("picture", images), **_sources("video", videos)}
        typer.echo(json.dumps(_told(answers, names, told)))
    else:
        show(answers_table(question, answers))
    if overlay is not None:
        write_overlay(overlay, loaded.processor, pictures, question, answers)
        if not as_json:
            typer.echo(f"Overlay: {overlay}")
    if report is not None:
        size = write_report(report, Look(loaded, pictures, question, settings), names)
        if not as_json:
            typer.echo(f"Report: {report} ({size / 1000:,.0f} kB)")
    if isinstance(answers[0], Refused):
        raise UnsupportedError(f"{answers[0].method}: {answers[0].reason}")


def _sources(what: str, names: Sequence[str]) -> dict[str, Any]:
    """What was asked about, by name."""
    if not names:
        return {}
    return {what: names[0]} if len(names) == 1 else {f"{what}s": list(names)}


def _told(
    answers: Sequence[Answer | Refused], names: Sequence[str], asked: dict[str, Any]
) -> dict[str, Any]:
    """What --json prints: the first method's answer, and below "compare" those of the others."""
    by_name = {one.method: one.as_json() for one in answers}
    told = by_name[names[0]] | asked
    return told | ({"compare": [by_name[name] for name in names[1:]]} if names[1:] else {})
