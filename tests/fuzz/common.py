"""What fuzz targets share: how many inputs, how files are spoilt, and what may never happen.

A target takes inputs from a stranger, spoils them and asserts that what comes out is right or an
error of `tokensieve.errors` that names the source. It is an ordinary test:

    @fuzzed
    @given(data=spoilt(SEEDS))
    def test_anything(data):
        with bounded():
            ...

In the whole suite each target sees few inputs, the same ones in every run. `make fuzz` gives it
10,000 of its own, other ones in every run: TOKENSIEVE_FUZZ is their number.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tokensieve.errors import TokensieveError

ASKED = os.environ.get("TOKENSIEVE_FUZZ", "")
EXAMPLES = int(ASKED or 60)
SECONDS = 30  # of one input: far more than any takes, far less than a hang

fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize=not ASKED,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

# Numbers at which sizes and counts break, as a file would hold them.
_EDGES = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Hang(BaseException):
    """An input took longer than `SECONDS`; no `except Exception` hides it."""


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Fail on any warning and, after `seconds`, with `Hang`."""

    def stop(number: int, frame: Any) -> None:
        raise Hang(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_told(error: Exception, source: str) -> None:
    """Fail unless `error` is one of ours, one line, short, and names the source."""
    said = str(error)
    assert isinstance(error, TokensieveError), repr(error)
    assert source in said
    assert "\n" not in said
    assert len(said) < 1500
    said.encode("utf-8")


def spoilt(seeds: Sequence[bytes], edits: int = 4) -> SearchStrategy[bytes]:
    """One of the valid files `seeds` after up to `edits` edits: bytes flipped, numbers put to an
    edge, stretches cut out, doubled or taken from another seed, the end cut off."""
    place = st.one_of(st.integers(0, 63), st.integers(0, 1 << 20))  # heads decide the most
    edit = st.tuples(st.sampled_from(sorted(_EDITS)), place, st.integers(1, 64), st.integers(0))
    number = st.integers(0, len(seeds) - 1)

    def made(first: int, other: int, done: list[tuple[str, int, int, int]]) -> bytes:
        data = bytearray(seeds[first])
        for name, at, length, value in done:
            if data:
                _EDITS[name](data, at % len(data), length, value, seeds[other])
        return bytes(data)

    return st.builds(made, number, number, st.lists(edit, max_size=edits))


def _flip(data: bytearray, at: int, length: int, value: int, other: bytes) -> None:
    data[at] ^= 1 + value % 255


def _edge(data: bytearray, at: int, length: int, value: int, other: bytes) -> None:
    width = (1, 2, 4)[length % 3]
    number = _EDGES[value % len(_EDGES)] & ((1 << 8 * width) - 1)
    data[at : at + width] = number.to_bytes(width, "big" if length % 2 else "little")


def _cut(data: bytearray, at: int, length: int, value: int, other: bytes) -> None:
    del data[at : at + length]


def _double(data: bytearray, at: int, length: int, value: int, other: bytes) -> None:
    data[at:at] = data[at : at + length]


def _splice(data: bytearray, at: int, length: int, value: int, other: bytes) -> None:
    start = value % len(other)
    data[at : at + length] = other[start : start + length]


def _end(data: bytearray, at: int, length: int, value: int, other: bytes) -> None:
    del data[at:]


_EDITS = {
    "flip": _flip, "edge": _edge, "cut": _cut, "double": _double, "splice": _splice, "end": _end,
}  # fmt: skip


def one_line(error: Exception) -> None:
    """Fail unless an error is told in one line, and not a long one."""
    assert "\n" not in str(error)
    assert 10 < len(str(error)) < 3000


def json_values(leaves: SearchStrategy[Any] | None = None) -> SearchStrategy[Any]:
    """Anything a JSON file may hold, and what strangers put there: numbers without bound, NaN,
    lone surrogates, NUL bytes, very long text, lists within lists."""
    hostile = st.sampled_from(
        ["\ud800", "\0", "a" * 5000, "../" * 40, 10**400, -1, 0, 1e308, float("nan"), float("inf")]
    )
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    leaf = plain | hostile if leaves is None else leaves | plain | hostile
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=8,
    )
