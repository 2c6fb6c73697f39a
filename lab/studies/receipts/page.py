"""docs/results/receipts.md from results/receipts: `python -m lab.studies.receipts.page`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import command
from lab.report.markdown import table
from lab.report.page import document, fold, words
from lab.studies.receipts.suite import CEILING
from tokensieve.errors import InputError
from tokensieve.evaluate.records import Record, read_all
from tokensieve.files import write_text

AT, RECEIPTS = "0.2", "receipts"
FORMS = {"kept": "Words and area kept", "read": "Words that an engine reads"}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results", type=Path, help="folder of records")
    parser.add_argument("--root", default=".", type=Path, help="where docs/ lies")
    options = command.parse(parser, arguments)
    found = [r for r in read_all(options.results / "receipts") if r.get("form") in FORMS]
    if not found:
        raise InputError(
            f"Expected records in {options.results / 'receipts'}. Got none. Run `make receipts`."
        )
    write_text(options.root / "docs" / "results" / "receipts.md", page(found))


def page(found: Sequence[Record]) -> str:
    """The report's half of receipts first, then everything else folded, choices apart."""
    parts = []
    for form, heading in FORMS.items():
        parts.append(f"## {heading}")
        of_form = sorted((r for r in found if r["form"] == form), key=_order)
        for record in of_form:
            title = f"{_model(record)}, {_what(record)}"
            body = (record["note"], table(record["table"]))
            shown = record["config"]["half"] == "test" and record["config"]["documents"] == RECEIPTS
            parts += [f"### {title}", *body] if shown else [fold(title, *body)]
    return document(
        "What is kept of words on receipts and pages", message(found), parts,
        "`python -m lab.studies.receipts.page` from `results/receipts/`",
        "Records are made by `make receipts DATA=folder`.",
    )  # fmt: skip


def _model(record: Record) -> str:
    """The model's name; that the old nano is the old one is said."""
    name = Path(record["config"]["model"]).name
    base = ", crops as of LLaVA-NeXT" if record["config"]["base"] else ""
    return ("the embedded nano (192 pixels)" if name == "nano" else name) + base


def _what(record: Record) -> str:
    config = record["config"]
    use = "for the report" if config["half"] == "test" else "for choices"
    return f"{config['number']} {config['documents']} {use} (`{config['half']}`)"


def _order(record: Record) -> tuple[bool, str, bool, str]:
    config = record["config"]
    return (
        config["half"] != "test",
        config["half"],
        config["documents"] != RECEIPTS,
        config["model"],
    )


def message(found: Sequence[Record]) -> str:
    """Who keeps and whose tokens are read, on the receipts of the report."""
    said = []
    for form, key, verb in (
        ("kept", "words_kept", "words kept whole"), ("read", "labels", "words tesseract reads"),
    ):  # fmt: skip
        for record in found:
            config = record["config"]
            if (record["form"], config["half"], config["documents"]) == (form, "test", RECEIPTS):
                means = _means(record, key)
                best = max((n for n in means if n not in ("selector", CEILING, "whole picture")),
                           key=lambda name: means[name], default="")  # fmt: skip
                if best and "selector" in means:
                    said.append(f"{verb} of the receipts, {_model(record)}: selector "
                                f"{means['selector']:.1%}, best of the others `{best}` "
                                f"{means[best]:.1%}")  # fmt: skip
    if not said:
        return "Not run yet on the receipts of the report."
    return f"At {float(AT):.0%} of the tokens: {words(said)}."


def _means(record: Record, key: str) -> dict[str, float]:
    """Mean over documents and seeds at `AT` by variant."""
    values: dict[str, list[float]] = {}
    for row in record["rows"]:
        found: Any = row[key].get(AT) if record["form"] == "kept" else row[key]
        if found and (record["form"] == "kept" or f"{row['keep']:g}" == AT):
            values.setdefault(row["variant"], []).append(found["mean"])
    return {name: sum(v) / len(v) for name, v in values.items()}


if __name__ == "__main__":
    command.run(main)
