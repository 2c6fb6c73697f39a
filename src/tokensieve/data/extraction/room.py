"""Memory shared by threads that read ahead."""

from __future__ import annotations

import threading
from collections import Counter


class Room:
    """So many bytes for work that is numbered from 0 and waited for in that order.

    Whoever needs more waits until others have given back enough, but for the work that comes next:
    it never waits, so it always ends, and what the others wait for is given back.
    """

    def __init__(self, size: int) -> None:
        self._size, self._next, self._closed = size, 0, False
        self._held: Counter[int] = Counter()
        self._changed = threading.Condition()

    def take(self, number: int, amount: int) -> None:
        """Hold `amount` bytes for work `number`, maybe after a wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(number, amount))
            self._held[number] += amount

    def swap(self, number: int, given: int, kept: int) -> None:
        """Give back `given` bytes of work `number` for `kept` ones that are there already."""
        with self._changed:
            self._held[number] += kept - given
            self._changed.notify_all()

    def done(self, number: int) -> None:
        """Give back all that work `number` holds; the next one is waited for now."""
        with self._changed:
            del self._held[number]
            self._next = number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Keep nobody waiting any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, number: int, amount: int) -> bool:
        first = self._closed or number <= self._next
        return first or self._held.total() + amount <= self._size
