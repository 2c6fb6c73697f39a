"""The frozen encoder's features of many pictures, into a store that survives kill -9.

Chunk number i of the listing becomes shard number i, written whole or not at all: a chunk is done
if and only if its shard is there. So a run goes on where another stopped, and several processes,
on one machine or many, share the chunks by rank without ever talking to each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tokensieve.data.extraction.crops import CropEncoder
from tokensieve.data.extraction.read import Batch, Share, read_batch
from tokensieve.data.extraction.retry import check_same_pictures, skipped_chunks
from tokensieve.data.extraction.room import Room
from tokensieve.data.extras import need
from tokensieve.data.pictures.decode import LIMITS, Limits, quiet
from tokensieve.data.sources import Listing, Source
from tokensieve.data.store.identity import FEATURES, STORE, begin, make_identity, remove_leftovers
from tokensieve.data.store.manifest import MANIFEST, Summary, write_manifest
from tokensieve.data.store.shards import NONFINITE, Crop, Record, shard_name, write_shard
from tokensieve.errors import ConfigError, InputError, NonFiniteError
from tokensieve.fields import check_fields, option
from tokensieve.folders import check_ours, claimed
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.prompt.template import placeholder_of
from tokensieve.types import Site

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ROOM = 1 << 28  # bytes of pictures and inputs a thread may fill, on average, besides the next batch


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract.

    site: "features", "embeds" or, with a `layer` of it and sources that ask, "llm". dtype: what is
    stored, a key of `DTYPES`. pixels: store each crop's, too. chunk: pictures of a shard. batch:
    pictures the encoder reads at once. workers: threads that decode ahead. max_pixels: of a
    picture; a larger one is skipped.

    Raises `ConfigError` for a number below 1, `UnknownNameError` for the dtype.
    """

    site: Site = Site.FEATURES
    dtype: str = option("float16", choices=DTYPES)
    pixels: bool = False
    chunk: int = option(256, low=1, high=2**16)
    batch: int = option(16, low=1, high=2**12)
    workers: int = option(4, low=1, high=2**10)
    max_pixels: int = option(LIMITS.pixels, low=1, high=2**32)
    layer: int | None = option(None, low=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.layer is not None) != (self.site is Site.LLM):
            raise ConfigError(
                f"Expected a layer with the site 'llm', and with no other. Got the site "
                f"'{self.site}' and layer {self.layer}. Pass --site llm --layer K."
            )


def extract(
    loaded: Loaded,
    sources: Sequence[Source],
    out: str | Path,
    settings: ExtractSettings | None = None,
    *,
    share: tuple[int, int] = (0, 1),
    retry_skipped: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary | None:
    """Bring the store at `out` to completion, as far as this process is concerned.

    share: (rank, world): of `world` processes that share the work, this one is number `rank`.
    retry_skipped: read the chunks that hold skipped pictures again. progress: called with pictures
    done and pictures to do by this process in this run.
    Returns the finished store's summary, or None while shards of other processes are missing:
    whichever process ends last writes the manifest.

    Raises `ConfigError` for a store begun with something else and a folder that holds anything else
    or that another run is at, `InputError` if no picture could be read, `NonFiniteError` if the
    dtype can hold the features of no picture of the first chunk, `UnsupportedError` for the site,
    and `MissingPackageError` without pyarrow.
    """
    settings, out = settings or ExtractSettings(), Path(out)
    rank, world = share
    if not 0 <= rank < world:
        raise ConfigError(f"Expected a rank from 0 to {world - 1}. Got {rank}.")
    need("pyarrow", "train", "to write the manifest")
    check_ours(out, FEATURES)
    listing = Listing(sources)
    _check_asks(listing, settings.site, placeholder_of(loaded.processor))
    encoder = CropEncoder(
        loaded, settings.site, DTYPES[settings.dtype],
        pixels=settings.pixels, layer=settings.layer,
    )  # fmt: skip
    names = [shard_name(i) for i in range(-(-len(listing) // settings.chunk))]
    if retry_skipped:
        check_same_pictures(out, names, listing)
    identity = _identity(loaded, encoder, listing, settings)
    claim = f"{rank}-of-{world}" if world > 1 else None
    with claimed(out, FEATURES, share=claim), quiet():
        begin(out, identity, repaired=retry_skipped)
        mine = {i: names[i] for i in range(rank, len(names), world)}
        missing = _missing(out, mine, retry_skipped)
        _run(encoder, listing, out, missing, settings, progress or (lambda done, total: None))
        there = {path.name for path in out.glob("shard-*.safetensors")}
        if not there.issuperset(names):
            return None
        remove_leftovers(out, {*names, STORE, MANIFEST})
        return write_manifest(out, names)


def _check_asks(listing: Listing, site: Site, placeholder: str) -> None:
    """Raise `ConfigError` where questions are missing or nobody reads them, `InputError` for one
    that holds the picture's placeholder."""
    asked = [listing.question(i) for i in range(len(listing))] if site is Site.LLM else []
    asks = any(getattr(source, "questions", ()) for source in listing.sources)
    if asks != (site is Site.LLM) or not all(asked):
        raise ConfigError(
            f"Expected a file of questions with the site 'llm', and with no other. Got the site "
            f"'{site}' and {'' if asks else 'no '}questions. Pass --site llm --questions FILE."
        )
    for index, question in enumerate(asked):
        if placeholder in question:
            raise InputError(
                f"Expected questions without the placeholder {placeholder}. Got one of "
                f"{'/'.join(listing.label(index))}. Leave it out: it is put in by itself."
            )


def _missing(out: Path, mine: dict[int, str], retry_skipped: bool) -> list[int]:
    """The numbers of the shards of this process that are still to be written, or written anew."""
    remove_leftovers(out, set(mine.values()))
    again = set(skipped_chunks(out, list(mine.values()))) if retry_skipped else set()
    if again:
        (out / MANIFEST).unlink(missing_ok=True)
    return [i for i, name in mine.items() if name in again or not (out / name).exists()]


def _identity(
    loaded: Loaded, encoder: CropEncoder, listing: Listing, settings: ExtractSettings
) -> dict[str, Any]:
    return make_identity(
        encoder.info,
        dtype=settings.dtype,
        chunk=settings.chunk,
        pixels=settings.pixels,
        compute=str(loaded.model.dtype).removeprefix("torch."),
        model=loaded.name,
        weights=encoder.weights(),
        tower=encoder.tower(),
        processor=encoder.processing(),
        **({} if encoder.prompt is None else {"prompt": encoder.prompt}),
        listing={
            "pictures": len(listing),
            "hash": listing.hash(),
            "content": listing.content(),
            "sources": {source.name: len(source.keys) for source in listing.sources},
        },
    )


def _run(
    encoder: CropEncoder,
    listing: Listing,
    out: Path,
    chunks: Sequence[int],
    settings: ExtractSettings,
    progress: Callable[[int, int], None],
) -> None:
    """Write the shards of `chunks`: threads read ahead, this one encodes, another one writes."""
    spans = [_span(chunk, settings.chunk, len(listing)) for chunk in chunks]
    total, done = sum(map(len, spans)), 0
    fresh = next(out.glob("shard-*.safetensors"), None) is None
    room = Room(ROOM * settings.workers)
    readers, writer = ThreadPoolExecutor(settings.workers), ThreadPoolExecutor(1)
    written: Future[None] | None = None
    try:
        batches = _read_ahead(readers, room, encoder, listing, spans, settings)
        for chunk, span in zip(chunks, spans, strict=True):
            records: list[Record] = []
            crops: list[Crop] = []
            while len(records) < len(span):
                found = _encode(encoder, next(batches))
                records += [record for record, _ in found]
                crops += [crop for _, own in found for crop in own]
                done += len(found)
                progress(done, total)
            if fresh and not crops:
                _check_storable(records)
            fresh = False
            if written is not None:
                written.result()
            path, dtype = out / shard_name(chunk), DTYPES[settings.dtype]
            written = writer.submit(write_shard, path, records, crops, encoder.info.width, dtype)
        if written is not None:
            written.result()
    finally:
        room.close()
        readers.shutdown(cancel_futures=True)
        writer.shutdown()


def _check_storable(records: Sequence[Record]) -> None:
    """Raise `NonFiniteError` if that is why none of the first pictures could be stored."""
    if errors := [r.error for r in records if r.error.startswith(NONFINITE)]:
        raise NonFiniteError(errors[0])


def _span(chunk: int, size: int, total: int) -> range:
    return range(chunk * size, min(total, (chunk + 1) * size))


def _read_ahead(
    pool: ThreadPoolExecutor,
    room: Room,
    encoder: CropEncoder,
    listing: Listing,
    spans: Sequence[range],
    settings: ExtractSettings,
) -> Iterator[Batch]:
    """Batches in order, none of more than one chunk; a few more than there are threads wait.

    What a batch takes of the room is given back when the next one is asked for.
    """
    waiting: deque[Future[Batch]] = deque()
    limits, done = Limits(settings.max_pixels), 0
    parts = (
        range(start, min(span.stop, start + settings.batch))
        for span in spans
        for start in range(span.start, span.stop, settings.batch)
    )
    for number, part in enumerate(parts):
        share = Share(room, number)
        waiting.append(pool.submit(read_batch, encoder, listing, part, limits, share))
        if len(waiting) > settings.workers + 1:
            yield waiting.popleft().result()
            room.done(done)
            done += 1
    while waiting:
        yield waiting.popleft().result()
        room.done(done)
        done += 1


def _encode(encoder: CropEncoder, batch: Batch) -> list[tuple[Record, list[Crop]]]:
    """Each picture's record and its crops, none for a skipped one."""
    records, crops = list(batch.records), [list[Crop]() for _ in batch.records]
    for rows, inputs in batch.calls:
        labels = [f"{records[row].source}/{records[row].key}" for row in rows]
        for row, found in zip(rows, encoder.crops(inputs, labels), strict=True):
            if isinstance(found, NonFiniteError):
                records[row] = replace(records[row], error=str(found))
            else:
                crops[row] = found
                records[row] = replace(records[row], crops=len(found))
    return list(zip(records, crops, strict=True))
