"""Caches that take nothing in but under a sieve, since they hold less than their prompt.

What is noted on such a cache follows its rows where they are repeated, chosen or reordered, and
goes once the cache has been emptied.
"""

from __future__ import annotations

from functools import cache as cached
from typing import Any

from torch import Tensor

from tokensieve.errors import UnsupportedError

NOTE, LENT = "_tokensieve", "_tokensieve_call"


def shut(cache: Any) -> None:
    """Let a cache take nothing in if it is noted to hold less than its prompt."""
    found = getattr(cache, NOTE, None)
    if found is not None and found.less and not _is_shut(cache):
        kind: Any = type(cache)
        cache.__class__ = _shut(kind)


def unshut(cache: Any) -> None:
    """Let a cache take in again, for one that knows what it holds."""
    if _is_shut(cache):
        cache.__class__ = type(cache).__mro__[1]


def _is_shut(cache: Any) -> bool:
    return getattr(type(cache), "_tokensieve_shut", False)


@cached
def _shut(kind: Any) -> Any:
    """A class of caches that take nothing in, but from the call they are lent to."""

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        lent = self.__dict__.get(LENT)
        if lent is not None and lent() is not None:
            return kind.update(self, *args, **kwargs)
        if int(self.get_seq_length()) == 0:  # emptied since
            unshut(self)
            delattr(self, NOTE)
            return self.update(*args, **kwargs)
        raise UnsupportedError(
            "Expected a cache that holds the whole prompt. Got one filled under a sieve or from "
            "`compress`, which holds less. Go on inside `with sieve(model, ...)`, or pass the "
            "whole conversation and no cache."
        )

    def choose(name: str) -> Any:
        def chosen(self: Any, rows: Tensor) -> None:
            getattr(kind, name)(self, rows)
            setattr(self, NOTE, getattr(self, NOTE).taken(rows.tolist()))

        return chosen

    def repeat(self: Any, repeats: int) -> None:
        kind.batch_repeat_interleave(self, repeats)
        setattr(self, NOTE, getattr(self, NOTE).repeated(repeats))

    def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
        made = kind.__reduce_ex__(self, protocol)
        return (_new, (kind,), *made[2:])

    return type(kind.__name__, (kind,), {
        "update": update, "batch_repeat_interleave": repeat, "__reduce_ex__": reduce,
        **{name: choose(name) for name in ("batch_select_indices", "reorder_cache")},
        "_tokensieve_shut": True, "__module__": kind.__module__,
        "__qualname__": kind.__qualname__, "__doc__": kind.__doc__,
    })  # fmt: skip


def _new(kind: Any) -> Any:
    return object.__new__(_shut(kind))
