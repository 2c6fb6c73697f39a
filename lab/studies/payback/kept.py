"""What each shape keeps: `python -m lab.studies.payback.kept SUITE`, after the trainings.

Of the questions about the suite's pages the share whose patches, of key and value, are all kept.
No reader has a say: what is kept in part may still be read, what is kept may be misread.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lab import command
from lab.nano2.asking import questions_of
from lab.studies.payback.measure import TIMES
from lab.studies.payback.page import write_page
from lab.studies.payback.spec import BESIDE, SHIPPED, shape_of
from lab.world import SORTS, candidates
from tokensieve.budget import count
from tokensieve.evaluate import records
from tokensieve.evaluate.config import Suite, load_suite
from tokensieve.evaluate.score import prompt
from tokensieve.evaluate.subject import Subject, load_subject
from tokensieve.hf.encoder.encode import encode
from tokensieve.methods.base import Method
from tokensieve.types import VisionTokens

MODEL, GRID = "nano2", (24, 24)


@dataclass(frozen=True)
class Seen:
    """A page's tokens, and the patches each of its questions needs."""

    vision: VisionTokens
    needs: tuple[frozenset[int], ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, count, write record and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="lab/studies/payback/suite.json")
    parser.add_argument("--out", type=Path, default=TIMES)
    parser.add_argument("--root", type=Path, default=Path(), help="where docs/ lies")
    options = command.parse(parser, arguments)
    suite = load_suite(options.suite)
    subject = load_subject(MODEL)
    pages = list(seen(subject, suite))
    methods = trained(subject, suite)
    config = {"kinds": suite.kinds, "pictures": suite.pictures, "split": suite.split,
              "keeps": suite.keeps, "weights": subject.fingerprint}  # fmt: skip
    rows = [row for name, method in methods for row in count_kept(name, method, pages, suite.keeps)]
    records.write(options.out / "kept.json", {
        "form": "payback-kept", "identity": records.identity(config), "config": config,
        **records.provenance(), "rows": rows,
    })  # fmt: skip
    write_page(suite, options.out, options.root)


@torch.inference_mode()
def seen(subject: Subject, suite: Suite) -> Iterator[Seen]:
    """The pages of the suite, through the encoder."""
    text = prompt(subject.processor, "?")
    for kind in suite.kinds:
        for number in range(suite.pictures):
            drawn = next(candidates(SORTS[kind], number, suite.split))
            image = Image.fromarray(drawn.image)
            inputs = subject.processor(images=[image], text=[text], return_tensors="pt")
            features = encode(subject.model, dict(inputs)).features
            asked = questions_of(drawn)["asked"]
            needs = tuple(frozenset(places) for _, _, places in asked if places)
            if features is not None and needs:
                yield Seen(VisionTokens(features[0], grid=GRID), needs)


def trained(subject: Subject, suite: Suite) -> Iterator[tuple[str, Method]]:
    """By name: `divprune`, what ships, and every shape of which there are weights, for each seed.

    All choose among the encoder's features.
    """
    yield BESIDE, subject.bound(BESIDE, {})
    yield SHIPPED, subject.bound("selector", {})
    for variant in suite.variants:
        for folder in variant.per_seed.get("weights", ()) if shape_of(variant.name) else ():
            if Path(folder).exists():
                yield variant.name, subject.bound("selector", {"weights": folder})


@torch.inference_mode()
def count_kept(
    name: str, method: Method, pages: Sequence[Seen], keeps: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """One row a share kept: of how many questions nothing is lost."""
    for keep in keeps:
        whole = total = 0
        for page in pages:
            tokens = page.vision.tokens.shape[1]
            kept_BL = method.reduce(page.vision, torch.tensor([count(keep, tokens)])).kept
            kept = set(kept_BL[0].nonzero()[:, 0].tolist())
            whole += sum(needs <= kept for needs in page.needs)
            total += len(page.needs)
        yield {"name": name, "keep": keep, "whole": whole, "questions": total}


if __name__ == "__main__":
    command.run(main)
