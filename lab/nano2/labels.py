"""What a patch is taught to show: its own characters and its own pixels, nothing else.

G: patches a side of the page (24); K: characters a patch has room for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lab.nano2.words import UNSURE

PATCH, GRID, SLOTS = 14, 24, 4
IGNORE = -100


def slots(places: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The characters whose places lie in each patch, (G, G, K): by line, then from the left.

    0 fills up. A patch with a character of which nobody is sure is IGNORE throughout; of more
    than K the rest is dropped.
    """
    found = np.zeros((GRID, GRID, SLOTS), dtype=np.int64)
    cells = np.floor(places / PATCH).astype(np.int64)
    inside = ((cells >= 0) & (cells < GRID)).all(axis=1)
    held: dict[tuple[int, int], list[int]] = {}
    for number in np.flatnonzero(inside):
        held.setdefault((int(cells[number, 1]), int(cells[number, 0])), []).append(int(number))
    for (row, column), numbers in held.items():
        if any(codes[n] == UNSURE for n in numbers):
            found[row, column] = IGNORE
            continue
        numbers.sort(key=lambda n: (round(places[n, 1] / 6), places[n, 0]))
        for k, n in enumerate(numbers[:SLOTS]):
            found[row, column, k] = codes[n]
    return found
