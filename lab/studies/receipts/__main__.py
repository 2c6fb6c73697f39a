"""Text kept of documents: `python -m lab.studies.receipts --data DIR`, or `--pages N`.

DIR holds img/*.jpg and box/*.json (a list of {"box": [left, top, right, bottom], "text": "..."} in
pixels of the stored picture). Receipts are split in halves by a hash of their names: "val" for
choices (rules, text height, training pictures), "test" for the report. Overlays show what was kept;
they are pictures of others, keep them out of the repository. --pages: drawn pages of nano 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lab import command
from lab.studies.receipts.overlay import save_overlay
from lab.studies.receipts.suite import (
    Documents,
    ReceiptSuite,
    file_of,
    keep_of,
    opened,
    parser_of,
)
from lab.studies.receipts.tiles import Receipt, Tiling, word_shares
from lab.studies.receipts.tokens import Encoder, encode_receipt
from tokensieve.evaluate import records
from tokensieve.evaluate.config import Variant
from tokensieve.evaluate.stats import bootstrap_mean
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.folders import Kind, check_ours, mark

OVERLAYS = Kind("overlays of receipts")
WHOLE = 0.9  # a word counts as kept where so much of its box is
SHOWN = 8  # documents that overlays are made of
Run = tuple[Variant, int, dict[str, Any]]
Scores = NDArray[np.float64]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, write the record and, if asked, overlays."""
    parser = parser_of(__doc__)
    parser.add_argument("--overlays", type=Path, help="folder for overlays of the first documents")
    options = command.parse(parser, arguments)
    suite, documents = opened(options)
    if options.overlays is not None:
        check_ours(options.overlays, OVERLAYS)
    record = measure(suite, documents, options.half, options.overlays)
    records.write(file_of(options, suite, "kept", documents.what), record)
    for row in record["table"]:
        print("  ".join(row))


def measure(
    suite: ReceiptSuite, documents: Documents, half: str, overlays: Path | None = None
) -> records.Record:
    """Shares of words kept whole and of text-box area kept, by document, method, seed and keep."""
    loaded = load_subject(suite.model)
    encoder = Encoder.of(loaded)
    tiling = suite.tiling(encoder.side, encoder.patch)
    runs = [(variant, *seed) for variant in suite.variants for seed in variant.seeds()]
    shape = (len(runs), len(suite.keeps), len(documents.names))
    scores = {"words": np.zeros(shape), "area": np.zeros(shape)}
    coverage: list[float] = []
    for column, name in enumerate(documents.names):
        receipt = documents.load(name, tiling)
        print(f"{column + 1} of {len(documents.names)}: {name}", flush=True)
        coverage.append(float((receipt.text > 0)[receipt.valid].float().mean()))
        shown: dict[str, torch.Tensor] = {}
        for row, place, kept in masks(suite, runs, loaded, encoder, receipt):
            whole = word_shares(receipt, kept, tiling) >= WHOLE - 1e-6
            scores["words"][row, place, column] = whole.mean()
            scores["area"][row, place, column] = receipt.text_kept(kept)
            variant, seed, _ = runs[row]
            if seed == 0:
                shown[f"{variant.name} {suite.keeps[place]:g}"] = kept
        if overlays is not None and column < SHOWN:
            mark(overlays, OVERLAYS)
            save_overlay(overlays / f"{name}.png", receipt, tiling, shown)
    config = {**asdict(suite), "half": half, "documents": documents.what,
              "number": len(documents.names), "tiling": asdict(tiling)}  # fmt: skip
    return {
        "form": "kept",
        "identity": records.identity(config),
        "config": config,
        **records.provenance(),
        "model_weights": loaded.fingerprint,
        "tokens_touched_by_text": round(float(np.mean(coverage)), 4),
        "rows": [
            row_of(run, loaded.fingerprints(run[2]), suite.keeps,
                   {what: values[i] for what, values in scores.items()})
            for i, run in enumerate(runs)
        ],
        "note": note(tiling, documents, half, float(np.mean(coverage))),
        "table": table(suite.keeps, runs, scores),
    }  # fmt: skip


def masks(
    suite: ReceiptSuite, runs: Sequence[Run], loaded: Subject, encoder: Encoder, receipt: Receipt
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(number of the run, number of the keep, tokens kept) of a document that is encoded once."""
    tokens = encode_receipt(encoder, receipt)
    for row, (variant, _, options) in enumerate(runs):
        for place, keep in enumerate(suite.keeps):
            yield row, place, keep_of(variant.method, options, loaded, receipt, tokens, keep)


def row_of(
    run: Run, weights: Mapping[str, str], keeps: Sequence[float], scores: Mapping[str, Scores]
) -> dict[str, Any]:
    """One method and seed: mean and interval over documents at every keep."""
    variant, seed, options = run
    row = {"variant": variant.name, "method": variant.method, "options": dict(options),
           "weights": dict(weights), "seed": seed}  # fmt: skip
    for what, of_what in scores.items():
        pairs = list(zip(keeps, of_what, strict=True))
        row[f"{what}_kept"] = {f"{keep:g}": bootstrap_mean(v).rounded() for keep, v in pairs}
        row[f"{what}_by_document"] = {f"{keep:g}": np.round(v, 3).tolist() for keep, v in pairs}
    return row


def table(
    keeps: Sequence[float], runs: Sequence[Run], scores: Mapping[str, Scores]
) -> list[list[str]]:
    """Rows of text: seeds averaged per document, 95 % interval over documents, range of seeds."""
    out = [["kept, %", *[f"{what} {keep:g}" for what in scores for keep in keeps]]]
    for name in dict.fromkeys(variant.name for variant, _, _ in runs):
        rows = [i for i, (variant, _, _) in enumerate(runs) if variant.name == name]
        cells = [_cell(of_what[rows, place]) for of_what in scores.values()
                 for place in range(len(keeps))]  # fmt: skip
        out.append([name, *cells])
    return out


def _cell(values_SN: Scores) -> str:
    """Mean over seeds and documents, its interval, and the lowest and highest seed."""
    found = bootstrap_mean(values_SN.mean(0))
    text = f"{100 * found.mean:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"
    if len(values_SN) > 1:
        seeds = values_SN.mean(1)
        text += f" [seeds {100 * seeds.min():.1f}–{100 * seeds.max():.1f}]"
    return text


def note(tiling: Tiling, documents: Documents, half: str, touched: float) -> str:
    """What the table's reader must know."""
    use = "for the report" if half == "test" else "for choices"
    what = (
        f"scanned receipts never seen in training, the half used {use} (split by a hash of the "
        f"file name); scaled so that the median text box is {tiling.text_height:g} pixels tall"
        if documents.what == "receipts"
        else f"drawn pages of nano 2's world, split `{half}`, half of them in fonts that no "
        "training shows, boxes around what is asked of them"
    )
    base = " besides the whole made small" if tiling.base else ""
    return (
        f"{len(documents.names)} {what}, cut in crops of {tiling.side} pixels{base}, one budget "
        f"over all crops. *words*: share of the words of which {WHOLE:.0%} of the box lies under "
        f"kept tokens; *area*: share of the boxes' area. On average {100 * touched:.0f} % of the "
        "tokens touch a text box. `oracle-text` takes the tokens with most text area: the ceiling "
        "of area. Mean over documents with 95 % bootstrap interval."
    )


if __name__ == "__main__":
    command.run(main)
