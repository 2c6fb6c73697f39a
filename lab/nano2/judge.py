"""What encoder and reader answer, by layout, fonts, light and dark, and moved by some pixels.

`python -m lab.nano2.judge --encoder FILE --reader FILE --out RECORD.json [--split val] [--pages N]`
asks every question of N pages a cell; an answer counts when all of it is right (greedy decoding).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration

from lab import command
from lab.nano.clip import normalise
from lab.nano.lm import Reader
from lab.nano2 import layouts
from lab.nano2.asking import PATCHES, example, pack, questions_of
from lab.nano2.assemble import model_of
from lab.nano2.keep import state_of
from lab.nano2.pages import HARDEST, Page, page
from tokensieve.evaluate import records

SHIFTS = (0, 1, 3, 5, 7, 9, 11, 13)


@dataclass(frozen=True)
class Cell:
    """One row of the record: pages of `kind`, in known fonts or not, light or dark or as drawn,
    moved right and down by `shift` pixels (None: all questions, 0: those that any shift leaves)."""

    kind: str
    seen: bool
    dark: bool | None = None
    shift: int | None = None

    @property
    def name(self) -> str:
        """For the record."""
        light = {None: "", True: ", dark", False: ", light"}[self.dark]
        moved = f", moved {self.shift} px" if self.shift is not None else ""
        return f"{self.kind}, {'known' if self.seen else 'unknown'} fonts{light}{moved}"


def cells(split: str) -> list[Cell]:
    """Every layout in known and unknown fonts; of two of them light, dark and moved."""
    kinds = [*layouts.TRAIN, "scene", "mixed"]
    found = [
        Cell(kind, seen) for kind in kinds for seen in (True, False) if seen or kind != "scene"
    ]
    found += [Cell(kind, False) for kind in layouts.HELD_OUT[split]]
    for kind in ("lines", "receipt"):
        found += [Cell(kind, False, dark) for dark in (False, True)]
        found += [Cell(kind, False, False, shift) for shift in SHIFTS]
    return found


def moved(image: NDArray[np.uint8], shift: int) -> NDArray[np.uint8]:
    """`image` moved right and down, its own edge continued; what leaves is lost."""
    padded = np.pad(image, ((shift, 0), (shift, 0), (0, 0)), mode="edge")
    return padded[: len(image), : len(image)]


def stays(drawn: Page, shift: int) -> Page | None:
    """The page moved, without what a shift of up to 13 px would push over its edge: every shift,
    0 too, is asked the same questions. None if nothing remains to ask."""
    edge = len(drawn.image) - max(SHIFTS) - 8
    kept = tuple(
        one
        for one in drawn.asked
        if all((drawn.places[list(part)] < edge).all() for part in (one.key, one.value))
    )
    places = drawn.places + shift
    image = moved(drawn.image, shift)
    return Page(image, places, drawn.codes, kept, drawn.kind, drawn.dark) if kept else None


@torch.no_grad()
def right(model: LlavaForConditionalGeneration, drawn: Page) -> list[bool]:
    """For every question of a page whether its whole answer is the most likely one."""
    one, reader = example(0, questions_of(drawn)), Reader(model)
    pixels = normalise(torch.from_numpy(drawn.image[None].copy()))
    features = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
    batch = pack(np.random.default_rng(0), [one], PATCHES, len(one.asked), 0.0, renumber=0.0)
    said = reader(features, batch).argmax(-1) == batch.targets
    return [
        bool(said[0][(batch.segment[0] == k) & (batch.weights[0] == 1)].all())
        for k in range(len(one.asked))
    ]


def judge(
    model: LlavaForConditionalGeneration, split: str, pages: int, seed: int, asked: list[Cell]
) -> dict[str, dict[str, float]]:
    """Share of right answers and its standard error (over pages) by cell."""
    found = {}
    for cell in asked:
        shares, questions = list[float](), 0
        for index in range(pages):
            drawn = page(seed, split, 50_000 + index, HARDEST, cell.seen, cell.kind, cell.dark)
            kept = stays(drawn, cell.shift) if cell.shift is not None else drawn
            if kept is None or not kept.asked:
                continue
            hits = right(model, kept)
            shares.append(float(np.mean(hits)))
            questions += len(hits)
        error = float(np.std(shares) / max(1, len(shares)) ** 0.5)
        found[cell.name] = {
            "right": round(float(np.mean(shares)), 4),
            "error": round(error, 4),
            "pages": len(shares),
            "questions": questions,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, ask, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--reader", type=Path, required=True, help="checkpoint of stage 3")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--pages", type=int, default=100, help="a cell")
    given = command.parse(parser, arguments)
    model = model_of(given.encoder, given.reader)
    found = judge(model, given.split, given.pages, 0, cells(given.split))
    told = {"split": given.split, "pages": given.pages, "reader": state_of(given.reader)}
    write_record(given.out, "reading", told, {"cells": found})


def write_record(out: Path, form: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """A record of what was found, with commit, versions and machine."""
    told = {"form": form, "identity": records.identity(config), "config": dict(config)}
    records.write(out, {**told, **records.provenance(), **found})


if __name__ == "__main__":
    command.run(main, "file")
