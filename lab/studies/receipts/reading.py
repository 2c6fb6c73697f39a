"""What an engine that knows nothing of us reads: `python -m lab.studies.receipts.reading`.

Takes --data or --pages, as lab.studies.receipts does. Dropped tokens are painted over with the
colour of the paper (the median of all pixels); the engine (tesseract) reads what is left.
Words count where they are among the labels, and where they are among what it reads of the whole
picture. Beside: the picture made smaller to as many tokens (`downsample`: the grid of best fit)
and to as many pixels, and enlarged again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import command
from lab.studies.receipts.overlay import stitch
from lab.studies.receipts.suite import (
    Documents,
    ReceiptSuite,
    file_of,
    keep_of,
    opened,
    parser_of,
)
from lab.studies.receipts.tiles import Receipt, Tiling, covered
from lab.studies.receipts.tokens import Encoder, encode_receipt
from tokensieve.budget import count
from tokensieve.evaluate import records, tesseract
from tokensieve.evaluate.shown import painted, shrunk
from tokensieve.evaluate.stats import bootstrap_mean
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.functional.grid import best_grid

WHOLE = "whole picture"
SMALLER = ("downsample", "downsample, equal pixels")
Page = NDArray[np.uint8]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, read, write the record."""
    options = command.parse(parser_of(__doc__), arguments)
    suite, documents = opened(options)
    record = measure(suite, documents, options.half)
    records.write(file_of(options, suite, "read", documents.what), record)
    for row in record["table"]:
        print("  ".join(row))


@dataclass
class Tally:
    """Per document, shares of the words right by the labels and by the whole picture's reading."""

    labels: list[float]
    reading: list[float]


def measure(suite: ReceiptSuite, documents: Documents, half: str) -> records.Record:
    """Words read right at every variant and keep; documents without any word are left out.

    Raises `MissingPackageError` where the engine is not installed.
    """
    engine, started = tesseract.version(), time.perf_counter()
    loaded = load_subject(suite.model)
    encoder = Encoder.of(loaded)
    tiling = suite.tiling(encoder.side, encoder.patch)
    found: dict[tuple[str, float], Tally] = {}
    for number, name in enumerate(documents.names, 1):
        receipt = documents.load(name, tiling)
        print(f"{number} of {len(documents.names)}: {name}", flush=True)
        labels, page = tesseract.words(receipt.said), page_of(receipt, tiling)
        reading = tesseract.words([tesseract.read(page)])
        if not labels or not reading:
            continue
        _count(found, (WHOLE, 1.0), labels, reading, reading)
        for place, shown in shown_pages(suite, loaded, encoder, receipt):
            _count(found, place, labels, reading, tesseract.words([tesseract.read(shown)]))
    config = {**asdict(suite), "half": half, "documents": documents.what, "engine": engine,
              "number": len(documents.names), "tiling": asdict(tiling)}  # fmt: skip
    rows = [row_of(*place, tally) for place, tally in found.items()]
    return {
        "form": "read", "identity": records.identity(config), "config": config,
        **records.provenance(), "model_weights": loaded.fingerprint,
        "seconds": round(time.perf_counter() - started, 1), "rows": rows,
        "note": note(documents, half, engine), "table": table(suite, rows),
    }  # fmt: skip


def row_of(variant: str, keep: float, tally: Tally) -> dict[str, Any]:
    """Means and intervals over documents, and each document's shares."""
    row: dict[str, Any] = {"variant": variant, "keep": keep}
    for what, values in vars(tally).items():
        row[what] = bootstrap_mean(np.array(values)).rounded()
        row[f"{what}_by_document"] = np.round(values, 3).tolist()
    return row


def _count(
    found: dict[tuple[str, float], Tally], place: tuple[str, float], labels: Counter[str],
    whole: Counter[str], read: Counter[str],
) -> None:  # fmt: skip
    tally = found.setdefault(place, Tally([], []))
    tally.labels.append(tesseract.share(labels, read))
    tally.reading.append(tesseract.share(whole, read))


def page_of(receipt: Receipt, tiling: Tiling) -> Page:
    """The picture itself, put together from its crops."""
    height, width = receipt.size
    return stitch(receipt.crops[int(tiling.base) :], receipt.layout)[:height, :width]


def shown_pages(
    suite: ReceiptSuite, loaded: Subject, encoder: Encoder, receipt: Receipt
) -> Iterator[tuple[tuple[str, float], Page]]:
    """((name, keep), picture) of every variant to read, at its first seed, and made smaller."""
    tokens = encode_receipt(encoder, receipt)
    tiling = suite.tiling(encoder.side, encoder.patch)
    page = page_of(receipt, tiling)
    for keep in suite.read_keeps:
        for variant in suite.variants:
            if variant.name in suite.read:
                _, options = next(variant.seeds())
                kept = keep_of(variant.method, options, loaded, receipt, tokens, keep)
                yield (variant.name, keep), painted(page, covered(kept, receipt.layout, tiling))
        tokens_kept = count(keep, int(receipt.valid.sum()))
        for name, size in zip(
            SMALLER, smaller(receipt.size, tokens_kept, keep, tiling), strict=True
        ):
            yield (name, keep), shrunk(page, size)


def smaller(
    size: tuple[int, int], tokens: int, keep: float, tiling: Tiling
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) with at most so many tokens, and with that share of the pixels."""
    patch = tiling.patch
    rows, columns = best_grid((-(-size[0] // patch), -(-size[1] // patch)), tokens)
    height, width = (max(1, round(edge * keep**0.5)) for edge in size)
    return (rows * patch, columns * patch), (height, width)


def table(suite: ReceiptSuite, rows: list[dict[str, Any]]) -> list[list[str]]:
    """Names down; by the labels and by the whole picture's reading, keeps across."""
    cells = {(row["variant"], row["keep"]): row for row in rows}
    places = [(what, keep) for what in ("labels", "reading") for keep in suite.read_keeps]
    head = {"labels": "of the labels", "reading": "of the whole's"}
    out = [["words read, %", *[f"{head[what]} {keep:g}" for what, keep in places]]]
    for name in dict.fromkeys(row["variant"] for row in rows):
        line = [name]
        for what, keep in places:
            one = cells.get((name, 1.0 if name == WHOLE else keep))
            ends = one and one[what]
            line.append("" if not ends else f"{100 * ends['mean']:.1f} "
                        f"({100 * ends['low']:.1f}–{100 * ends['high']:.1f})")  # fmt: skip
        out.append(line)
    return out


def note(documents: Documents, half: str, engine: str) -> str:
    """What the table's reader must know."""
    return (
        f"{len(documents.names)} {documents.what} (`{half}`), read by {engine}, which shares "
        "nothing with the selector; dropped tokens painted over with the median colour of the "
        "picture. Words of two or more letters and digits, in capitals, wherever they stand. *Of "
        "the labels*: share of the words that stand there; *of the whole's*: share of the words "
        "that the engine reads with nothing dropped. `downsample` is the picture made smaller to "
        "as many tokens, and to as many pixels, then enlarged again. First seed of each; mean over "
        "documents with 95 % bootstrap interval."
    )


if __name__ == "__main__":
    command.run(main)
