"""`tokensieve extract`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from tokensieve.cli.options import MODEL, AsJson, Device, MaxPixels, Model
from tokensieve.errors import ConfigError

if TYPE_CHECKING:
    from tokensieve.data.extraction.extract import ExtractSettings
    from tokensieve.data.sources import Source
    from tokensieve.data.store.manifest import Summary
    from tokensieve.hf.models.loaded import Loaded


PICTURES, STORE, SPEED = "Pictures", "Store", "Speed"

Images = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]SRC",
        help="Pictures: a folder, .tar, .parquet, video, hf:DATASET[:SPLIT] or "
        "synth:mix:COUNT; 'shards-*.tar' is one source. May be repeated.",
        rich_help_panel=PICTURES,
    ),
]
More = Annotated[list[str] | None, typer.Argument(metavar="SRC", help="More of --images.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="The store to write.", rich_help_panel=STORE),
]
ReadSite = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="'features' of the encoder, 'embeds' behind the projector, or 'llm': hidden states "
        "that enter --layer, behind each of --questions.",
        rich_help_panel=STORE,
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --site llm, in place of --images: a JSONL file, a line an image and a question.",
        rich_help_panel=PICTURES,
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="With --site llm: the decoder layer, counted from 0, that the tokens enter.",
        rich_help_panel=STORE,
    ),
]
Pixels = Annotated[
    bool, typer.Option("--pixels", help="Store the crops' pixels, too.", rich_help_panel=STORE)
]
StoredDtype = Annotated[
    str,
    typer.Option(metavar="NAME", help="What to store: float16 or bfloat16.", rich_help_panel=STORE),
]
Compute = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What to compute in: auto (as the weights are stored, but "
        "float32 where the device is slow in that), float32, bfloat16 or float16.",
        rich_help_panel=MODEL,
    ),
]
Frames = Annotated[
    int, typer.Option(metavar="N", help="Frames of each video.", rich_help_panel=PICTURES)
]
Column = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the pictures in parquet files and data sets.",
        show_default="the only one that fits",
        rich_help_panel=PICTURES,
    ),
]
Chunk = Annotated[
    int,
    typer.Option(
        metavar="N", help="Pictures of a shard, the unit of resuming.", rich_help_panel=STORE
    ),
]
Batch = Annotated[
    int,
    typer.Option(metavar="N", help="Pictures the encoder reads at once.", rich_help_panel=SPEED),
]
Workers = Annotated[
    int, typer.Option(metavar="N", help="Threads that decode ahead.", rich_help_panel=SPEED)
]
RetrySkipped = Annotated[
    bool,
    typer.Option(
        "--retry-skipped",
        help="Read chunks with skipped pictures again.",
        rich_help_panel=PICTURES,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Only read the store at --out, and say what is wrong.",
        rich_help_panel=STORE,
    ),
]


def extract(
    images: Images = None,
    out: Out = None,
    more: More = None,
    model: Model = "nano",
    device: Device = None,
    compute: Compute = "auto",
    site: ReadSite = "features",
    layer: Layer = None,
    questions: Questions = None,
    pixels: Pixels = False,
    dtype: StoredDtype = "float16",
    chunk: Chunk = 256,
    frames: Frames = 8,
    column: Column = None,
    max_pixels: MaxPixels = 89_478_485,
    retry_skipped: RetrySkipped = False,
    batch: Batch = 16,
    workers: Workers = 4,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Store what a frozen encoder says of pictures, to train on. Resumes where it stopped."""
    if out is None:
        raise ConfigError("Expected --out STORE, the folder of the store. Got none.")
    if verify:
        _verify(out, as_json)
        return
    if site != "llm" and not images:
        raise ConfigError("Expected --images SRC, pictures to read. Got none.")
    from tokensieve.data.extraction.extract import ExtractSettings
    from tokensieve.data.pictures.decode import raise_pillow_limit
    from tokensieve.data.progress import resumable
    from tokensieve.data.sources import open_source
    from tokensieve.data.sources.questions import QuestionSource
    from tokensieve.hf.load import load_encoder, load_model
    from tokensieve.hf.models.loaded import hush
    from tokensieve.types import Site

    if site not in (Site.FEATURES, Site.EMBEDS, Site.LLM):
        raise ConfigError(f"Expected `--site` features, embeds or llm. Got '{site}'.")
    named = [*(images or ()), *(more or ())]
    if (questions is not None) != (site == Site.LLM) or (questions is not None and named):
        raise ConfigError(
            "Expected --questions FILE with --site llm, and --images SRC with any other. Got "
            f"--site {site}, {'no ' if questions is None else ''}--questions and {len(named)} of "
            "--images. Pass one of them."
        )
    settings = ExtractSettings(Site(site), dtype, pixels, chunk, batch, workers, max_pixels, layer)
    raise_pillow_limit(max_pixels)
    sources: list[Source] = [open_source(spec, frames=frames, column=column) for spec in named]
    if questions is not None:
        sources = [QuestionSource(questions)]
    hush()
    with resumable("shard"):
        load = load_model if questions is not None else load_encoder
        loaded = load(model, compute, device or _own_gpu())
        _run(loaded, sources, out, settings, retry_skipped, as_json)


def _run(
    loaded: Loaded,
    sources: list[Source],
    out: Path,
    settings: ExtractSettings,
    retry_skipped: bool,
    as_json: bool,
) -> None:
    """Extract this process' share, with a bar, and say what came of it."""
    from tokensieve.data.extraction.extract import extract as run
    from tokensieve.data.progress import Progress

    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    start, seen = perf_counter(), [0]
    with Progress() as bar:

        def progress(done: int, total: int) -> None:
            seen[0] = done
            if rank == 0:
                bar(done, total)

        summary = run(
            loaded, sources, out, settings, share=(rank, world),
            retry_skipped=retry_skipped, progress=progress,
        )  # fmt: skip
    rate = seen[0] / (perf_counter() - start)
    if summary is None:
        typer.echo(f"Process {rank} of {world} has done its share; others are still at theirs.")
    elif as_json:
        told = {"store": str(out), **summary.as_json(), "read": seen[0]}
        typer.echo(json.dumps(told | {"pictures_per_second": round(rate, 2)}))
    else:
        typer.echo(_told(summary, out, seen[0], rate))


def _verify(out: Path, as_json: bool) -> None:
    """Say what is wrong with a store. Raises `WeightsError` if anything is."""
    from tokensieve.data.progress import Progress
    from tokensieve.data.store.verify import verify_store

    start = perf_counter()
    with Progress("shards") as bar:
        found = verify_store(out, bar)
    seconds = perf_counter() - start
    if as_json:
        typer.echo(json.dumps({"store": str(out), **asdict(found), "seconds": round(seconds, 2)}))
    else:
        for problem in found.problems:
            typer.echo(problem)
        state = "whole" if found.finished else "not finished; the shards there are whole"
        if found.unhashed:
            state += f", {found.unhashed:,} of them written without a hash"
        typer.echo(
            f"{found.shards:,} shards, {found.crops:,} crops, {found.bytes / 1e6:,.1f} MB read in "
            f"{seconds:.1f} s: {'damaged' if found.problems else state}"
        )
    found.require(out)


def _number(name: str, default: int) -> int:
    """An environment variable that launchers set. Raises `ConfigError` if it is no number."""
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"Expected a number in the environment's {name}. Got '{value}'.")
    return int(value)


def _own_gpu() -> str | None:
    """The GPU of this process among several on a machine; None for the first, or none."""
    import torch

    local = os.environ.get("LOCAL_RANK", "")
    if local.isdecimal() and torch.cuda.is_available():
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return None


def _told(summary: Summary, out: Path, read: int, rate: float) -> str:
    """The summary in plain words."""
    lines = [
        f"Store: {out}",
        f"  {summary.pictures:,} pictures, {summary.crops:,} crops, {summary.tokens:,} tokens, "
        f"{summary.bytes / 1e6:,.1f} MB",
        f"  {read:,} pictures read in this run, {rate:.1f}/s",
        f"  {summary.duplicates:,} duplicates by content, {summary.skipped:,} skipped",
    ]
    lines += [f"    {where}: {error}" for where, error in summary.skipped_first]
    if summary.skipped > len(summary.skipped_first):
        lines.append(f"    ... all of them: status 'skipped' in {out / 'manifest.parquet'}")
    if summary.skipped:
        lines.append("  Repaired some? The same command with --retry-skipped reads them again.")
    if summary.nonfinite:
        lines.append(
            f"  {summary.nonfinite:,} could not be stored for NaN or Inf: a new store with another "
            "--dtype or --compute may hold them."
        )
    return "\n".join(lines)
