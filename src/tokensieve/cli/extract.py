"""`tokensieve extract`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from tokensieve.errors import ConfigError

if TYPE_CHECKING:
    from tokensieve.data.extraction.extract import ExtractSettings
    from tokensieve.data.sources import Source
    from tokensieve.data.store.manifest import Summary
    from tokensieve.hf.models.loaded import Loaded


def extract(
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SRC",
            help="Pictures: a folder, .tar, .parquet, video, hf:DATASET[:SPLIT] or "
            "synth:mix:COUNT; 'shards-*.tar' is one source. May be given several times.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="STORE", help="The folder to write to.")
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[SRC]...", help="More sources.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="'nano' (embedded), a model directory, or a name on the hub.")
    ] = "nano",
    site: Annotated[
        str, typer.Option(help="'features' of the encoder, or 'embeds' behind the projector.")
    ] = "features",
    pixels: Annotated[
        bool,
        typer.Option("--pixels", help="Store the crops' pixels, too."),
    ] = False,
    dtype: Annotated[str, typer.Option(help="What to store: float16 or bfloat16.")] = "float16",
    compute: Annotated[
        str, typer.Option(help="What to compute in: auto (as the weights), float32, ...")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:0, ...; a GPU if there is one.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of each video.")] = 8,
    column: Annotated[
        str | None, typer.Option(help="Column of the pictures in parquet files and data sets.")
    ] = None,
    chunk: Annotated[int, typer.Option(help="Pictures of a shard, the unit of resuming.")] = 256,
    batch: Annotated[int, typer.Option(help="Pictures the encoder reads at once.")] = 16,
    workers: Annotated[int, typer.Option(help="Threads that decode ahead.")] = 4,
    max_pixels: Annotated[
        int, typer.Option(help="Pixels of a picture; a larger one is skipped.")
    ] = 89_478_485,
    retry_skipped: Annotated[
        bool, typer.Option("--retry-skipped", help="Read chunks with skipped pictures again.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only read the store at --out, and say what is wrong.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Store what a frozen encoder says of pictures, to train on. Resumes where it stopped."""
    if out is None:
        raise ConfigError("Expected --out STORE, the folder of the store. Got none.")
    if verify:
        _verify(out, as_json)
        return
    if not images:
        raise ConfigError("Expected --images SRC, pictures to read. Got none.")
    from tokensieve.data.extraction.extract import ExtractSettings
    from tokensieve.data.pictures.decode import raise_pillow_limit
    from tokensieve.data.progress import resumable
    from tokensieve.data.sources import open_source
    from tokensieve.hf.load import load_encoder
    from tokensieve.hf.models.loaded import hush
    from tokensieve.types import Site

    if site not in (Site.FEATURES, Site.EMBEDS):
        raise ConfigError(f"Expected `--site` features or embeds. Got '{site}'.")
    settings = ExtractSettings(Site(site), dtype, pixels, chunk, batch, workers, max_pixels)
    raise_pillow_limit(max_pixels)
    sources = [open_source(spec, frames=frames, column=column) for spec in [*images, *(more or ())]]
    hush()
    with resumable("shard"):
        loaded = load_encoder(model, compute, device or _own_gpu())
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
            loaded, sources, out, settings, rank=rank, world=world,
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
