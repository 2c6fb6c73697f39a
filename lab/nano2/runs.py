"""Text to read on from: some letters of a line are given, the rest of the line is the answer.

A value's few letters teach slowly to go from one letter to the next; a line's many teach it fast,
and cost next to nothing beside the page's tokens. Nothing of it is asked of a finished model.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from lab.nano2.labels import GRID, PATCH
from lab.nano2.pages import Page
from lab.nano2.words import CHARS, UNSURE

GAP, DROP = 30, 6  # pixels to the right, up and down, within which a line goes on
GIVEN, READ = (3, 6), 24  # letters given, at most (one more than that), and letters read at most


@dataclass(frozen=True)
class Run:
    """A line's characters without its spaces, and the patch of each."""

    text: str
    patches: list[int]


def runs_of(page: Page) -> list[tuple[str, list[int]]]:
    """The lines of a page as they were written; what something lies over ends one."""
    found: list[tuple[str, list[int]]] = []
    before = None
    for (x, y), code in zip(page.places.tolist(), page.codes.tolist(), strict=True):
        cell = int(x // PATCH), int(y // PATCH)
        if code == UNSURE or not all(0 <= one < GRID for one in cell):
            before = None
            continue
        if before is None or not (0 < x - before[0] <= GAP and abs(y - before[1]) <= DROP):
            found.append(("", []))
        text, patches = found[-1]
        found[-1] = (text + CHARS[code - 1], [*patches, cell[1] * GRID + cell[0]])
        before = x, y
    return [(text, patches) for text, patches in found if len(text) > GIVEN[0]]


def part_of(rng: Generator, runs: list[Run]) -> tuple[str, str, list[int]] | None:
    """Letters given, letters to read on with and the patches of both; None where those that were
    tried stand in more than one place."""
    everything = "\n".join(run.text for run in runs).lower()
    for _ in range(4):
        run = runs[int(rng.integers(len(runs)))]
        size = int(rng.integers(*GIVEN))
        begin = int(rng.integers(max(1, len(run.text) - size)))
        given = run.text[begin : begin + size]
        end = min(len(run.text), begin + size + READ)
        if everything.count(given.lower()) == 1 and begin + size < end:
            return given, run.text[begin + size : end], sorted(set(run.patches[begin:end]))
    return None


def ends(runs: list[Run], given: str, read: str) -> bool:
    """Whether the line ends where the letters read do."""
    return any(run.text.endswith(given + read) for run in runs) and len(read) < READ
