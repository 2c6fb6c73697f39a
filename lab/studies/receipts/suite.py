"""What the study measures: its suite, its documents, and what a method keeps of one.

T crops, L tokens of a crop.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.studies.receipts.pages import load_page, page_names
from lab.studies.receipts.tiles import Receipt, Tiling, load_receipt, receipt_names
from lab.studies.receipts.tokens import ReceiptTokens
from tokensieve.budget import count
from tokensieve.errors import ConfigError, UnknownNameError
from tokensieve.evaluate.config import Variant
from tokensieve.evaluate.subject import Subject

CEILING = "oracle-text"
SUITE = Path("lab/studies/receipts/suite.json")


@dataclass(frozen=True)
class ReceiptSuite:
    """lab/studies/receipts/suite.json.

    base: see `Tiling`. read, read_keeps: variants and shares that an engine reads.
    """

    suite: str
    model: str
    variants: tuple[Variant, ...]
    keeps: tuple[float, ...] = (0.1, 0.2, 0.4)
    text_height: float = 17.0
    base: bool = False
    read: tuple[str, ...] = ()
    read_keeps: tuple[float, ...] = (0.2, 0.4)

    def tiling(self, side: int, patch: int) -> Tiling:
        """Crops of an encoder of that side and patch."""
        return Tiling(side, patch, self.text_height, self.base)


@dataclass(frozen=True)
class Documents:
    """Receipts of a folder, or drawn pages: their names, and one by its name."""

    what: str
    names: tuple[str, ...]
    load: Callable[[str, Tiling], Receipt]

    @classmethod
    def receipts(cls, folder: Path, half: str, limit: int | None = None) -> Documents:
        """Of one half. Raises `InputError` if there are none."""
        names = receipt_names(folder, half)[:limit]
        return cls(
            "receipts", tuple(names), lambda name, tiling: load_receipt(folder, name, tiling)
        )

    @classmethod
    def pages(cls, half: str, number: int) -> Documents:
        """So many pages of nano 2's world, of the split called as the half."""
        return cls("pages", page_names(half, number), load_page)


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """The options that all commands of the study share."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, help="folder with img/ and box/: receipts")
    parser.add_argument("--pages", type=int, help="so many drawn pages, instead of receipts")
    parser.add_argument("--suite", type=Path, default=SUITE)
    parser.add_argument("--half", choices=("val", "test"), default="test")
    parser.add_argument("--limit", type=int, help="receipts to measure, instead of all")
    parser.add_argument("--text-height", type=float, help="pixels, instead of the suite's")
    parser.add_argument("--model", help="instead of the suite's: a name or a folder")
    parser.add_argument("--name", help="of the model, for the record's file")
    parser.add_argument("--base", action="store_true", default=None, help="crops as LLaVA-NeXT has")
    parser.add_argument("--only", help="variants to run, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of suites")
    return parser


def opened(options: argparse.Namespace) -> tuple[ReceiptSuite, Documents]:
    """The suite and the documents that a command line asks for.

    Raises `ConfigError` unless exactly one of --data and --pages is given.
    """
    if (options.data is None) == (options.pages is None):
        raise ConfigError(
            "Expected --data FOLDER for receipts or --pages N for drawn pages. Got both or none. "
            "Pass one of them."
        )
    suite = load(
        options.suite, text_height=options.text_height, model=options.model, base=options.base
    )
    if options.only:
        only = options.only.split(",")
        known = [variant.name for variant in suite.variants]
        for name in only:
            if name not in known:
                raise UnknownNameError.of("variant", name, known)
        kept = tuple(variant for variant in suite.variants if variant.name in only)
        suite = ReceiptSuite(**{**vars(suite), "variants": kept})
    if options.data is not None:
        return suite, Documents.receipts(options.data, options.half, options.limit)
    return suite, Documents.pages(options.half, options.pages)


def file_of(options: argparse.Namespace, suite: ReceiptSuite, form: str, what: str) -> Path:
    """Where a record of that form and those documents lies."""
    name = options.name or Path(suite.model).name
    base = "-base" if suite.base else ""
    return Path(options.out) / suite.suite / f"{name}{base}--{form}-{what}-{options.half}.json"


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
    for name in sorted({"keeps", "read", "read_keeps"} & set(raw)):
        raw[name] = tuple(raw[name])
    return ReceiptSuite(**raw)


def keep_of(
    name: str,
    options: Mapping[str, Any],
    loaded: Subject,
    receipt: Receipt,
    tokens: ReceiptTokens,
    keep: float,
) -> Tensor:
    """(T, L) tokens kept of a receipt's crops, one budget over all of them."""
    target = count(keep, int(receipt.valid.sum()))
    if name == CEILING:  # most text area first: no method can do better
        flat = receipt.text.masked_fill(~receipt.valid, -1).flatten()
        best = torch.zeros_like(flat, dtype=torch.bool)
        best[flat.argsort(descending=True, stable=True)[:target]] = True
        return best.view_as(receipt.valid)
    method = loaded.bound(name, options)
    with torch.no_grad():
        return method.reduce_pool([tokens.at(method.site)], target)[0].kept
