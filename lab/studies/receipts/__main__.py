"""Text kept on real receipts: `python -m lab.studies.receipts --data DIR`.

DIR holds img/*.jpg and box/*.json (a list of {"box": [left, top, right, bottom]} in pixels of the
stored picture). Receipts are split in halves by a hash of their names: "val" for choices (text
height, training pictures), "test" for the report. Overlays show what was kept; they are pictures
of others, keep them out of the repository.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab import command
from lab.studies.receipts.overlay import save_overlay
from lab.studies.receipts.tiles import Receipt, Tiling, load_receipt, receipt_names
from lab.studies.receipts.tokens import Encoder, ReceiptTokens, encode_receipt
from tokensieve.budget import count
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.evaluate import records
from tokensieve.evaluate.config import Variant
from tokensieve.evaluate.stats import bootstrap_mean
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.folders import Kind, check_ours, mark

OVERLAYS = Kind("overlays of receipts")
CEILING = "oracle-text"


@dataclass(frozen=True)
class ReceiptSuite:
    """lab/studies/receipts/suite.json."""

    suite: str
    model: str
    variants: tuple[Variant, ...]
    keeps: tuple[float, ...] = (0.1, 0.2, 0.4)
    text_height: float = 17.0


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, write the record and, if asked, overlays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with img/ and box/")
    parser.add_argument("--suite", type=Path, default=Path("lab/studies/receipts/suite.json"))
    parser.add_argument("--half", choices=("val", "test"), default="test")
    parser.add_argument("--limit", type=int, help="receipts to measure, instead of all")
    parser.add_argument("--text-height", type=float, help="pixels, instead of the suite's")
    parser.add_argument("--model", help="instead of the suite's; may be a bare vision encoder")
    parser.add_argument("--only", help="variants to run, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of suites")
    parser.add_argument("--overlays", type=Path, help="folder for overlays of the first receipts")
    options = command.parse(parser, arguments)
    suite = load(options.suite, text_height=options.text_height, model=options.model)
    only = set(options.only.split(",")) if options.only else None
    if options.overlays is not None:
        check_ours(options.overlays, OVERLAYS)
    record = measure(suite, options.data, options.half, options.limit, only, options.overlays)
    name = "report" if options.half == "test" else "choices"
    records.write(options.out / suite.suite / f"{name}.json", record)
    for row in record["table"]:
        print("  ".join(row))


def load(path: Path, **overrides: Any) -> ReceiptSuite:
    """Read the suite; `overrides` that are not None replace its fields.

    Raises `ConfigError` for a missing file or an unknown field.
    """
    try:
        raw = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as problem:
        raise ConfigError(f"Expected a receipts suite as JSON in {path}. Got: {problem}.") from None
    raw |= {k: v for k, v in overrides.items() if v is not None}
    known = {f.name for f in fields(ReceiptSuite)}
    for name in raw:
        if name not in known:
            raise UnknownNameError.of("suite field", name, known)
    raw["variants"] = tuple(Variant(**variant) for variant in raw["variants"])
    raw["keeps"] = tuple(raw.get("keeps", ReceiptSuite.keeps))
    return ReceiptSuite(**raw)


def measure(
    suite: ReceiptSuite,
    data: Path,
    half: str,
    limit: int | None = None,
    only: set[str] | None = None,
    overlays: Path | None = None,
) -> records.Record:
    """Share of text-box area under kept tokens, per receipt, method, seed and keep."""
    loaded = load_subject(suite.model)
    encoder = Encoder.of(loaded)
    tiling = Tiling(encoder.side, encoder.patch, suite.text_height)
    names = receipt_names(data, half)[:limit]
    runs = [
        (variant, seed, options)
        for variant in suite.variants
        if only is None or variant.name in only
        for seed, options in variant.seeds()
    ]
    shares = np.zeros((len(runs), len(suite.keeps), len(names)))
    coverage: list[float] = []
    for column, name in enumerate(names):
        receipt = load_receipt(data, name, tiling)
        tokens = encode_receipt(encoder, receipt)
        coverage.append(float((receipt.text > 0)[receipt.valid].float().mean()))
        shown: dict[str, torch.Tensor] = {}
        for row, (variant, seed, options) in enumerate(runs):
            for place, keep in enumerate(suite.keeps):
                kept = keep_of(variant.method, options, loaded, receipt, tokens, keep)
                shares[row, place, column] = receipt.text_kept(kept)
                if seed == 0:
                    shown[f"{variant.name} {keep:g}"] = kept
        if overlays is not None and column < 8:
            mark(overlays, OVERLAYS)
            save_overlay(overlays / f"{name}.png", receipt, tiling, shown)
    rows = [
        row_of(variant, seed, options, loaded.fingerprints(options), suite.keeps, shares[i])
        for i, (variant, seed, options) in enumerate(runs)
    ]
    config = {**asdict(suite), "half": half, "receipts": len(names), "tiling": asdict(tiling)}
    return {
        "form": "receipts",
        "identity": records.identity(config),
        "config": config,
        **records.provenance(),
        "model_weights": loaded.fingerprint,
        "tokens_touched_by_text": round(float(np.mean(coverage)), 4),
        "rows": rows,
        "title": "Real receipts: share of text-box area whose tokens are kept, %",
        "note": note(suite, half, len(names), float(np.mean(coverage))),
        "table": table(suite, runs, shares),
    }


def keep_of(
    name: str,
    options: Mapping[str, Any],
    loaded: Subject,
    receipt: Receipt,
    tokens: ReceiptTokens,
    keep: float,
) -> torch.Tensor:
    """(T, L) tokens kept of a receipt's crops, one budget over all of them."""
    target = count(keep, int(receipt.valid.sum()))
    if name == CEILING:  # most text area first: no method can do better
        flat = receipt.text.masked_fill(~receipt.valid, -1).flatten()
        best = torch.zeros_like(flat, dtype=torch.bool)
        best[flat.argsort(descending=True, stable=True)[:target]] = True
        return best.view_as(receipt.valid)
    method = loaded.bound(name, options)
    with torch.inference_mode():
        return method.reduce_pool([tokens.at(method.site)], target)[0].kept


def row_of(
    variant: Variant,
    seed: int,
    options: Mapping[str, Any],
    weights: Mapping[str, str],
    keeps: Sequence[float],
    shares: np.ndarray,
) -> dict[str, Any]:
    """One method and seed: mean and interval over receipts at every keep."""
    return {
        "variant": variant.name,
        "method": variant.method,
        "options": dict(options),
        "weights": dict(weights),
        "seed": seed,
        "text_kept": {
            f"{keep:g}": bootstrap_mean(values).rounded()
            for keep, values in zip(keeps, shares, strict=True)
        },
        "per_receipt": {
            f"{keep:g}": np.round(values, 3).tolist()
            for keep, values in zip(keeps, shares, strict=True)
        },
    }


def table(
    suite: ReceiptSuite, runs: Sequence[tuple[Variant, int, Any]], shares: np.ndarray
) -> list[list[str]]:
    """Rows of text: seeds averaged per receipt, 95 % interval over receipts, range of seeds."""
    out = [["text area kept, %", *[f"{keep:g}" for keep in suite.keeps]]]
    for name in dict.fromkeys(variant.name for variant, _, _ in runs):
        of_name = shares[[i for i, (variant, _, _) in enumerate(runs) if variant.name == name]]
        cells = []
        for place in range(len(suite.keeps)):
            found = bootstrap_mean(of_name[:, place].mean(0))
            text = f"{100 * found.mean:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"
            if len(of_name) > 1:
                seeds = of_name[:, place].mean(1)
                text += f" [seeds {100 * seeds.min():.1f}–{100 * seeds.max():.1f}]"
            cells.append(text)
        out.append([name, *cells])
    return out


def note(suite: ReceiptSuite, half: str, receipts: int, touched: float) -> str:
    """What the table's reader must know."""
    use = "for the report" if half == "test" else "for choices"
    return (
        f"{receipts} scanned receipts never seen in training, the half used {use} (split by a "
        f"hash of the file name); scaled so that the median text box is {suite.text_height:g} "
        "pixels tall, cut in crops, one budget over all crops of a receipt. On average "
        f"{100 * touched:.0f} % of the tokens touch a text box. `oracle-text` takes the tokens "
        "with most text area: the ceiling. Mean over receipts with 95 % bootstrap interval."
    )


if __name__ == "__main__":
    command.run(main)
