"""What is found out about a model once for all calls under a sieve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")
_KNOWN: dict[int, dict[str, Any]] = {}  # of models under an open sieve, by id


def once(find: Callable[[Any], T]) -> Callable[[Any], T]:
    """`find` of a model; while it is `remembered`, what was found is not looked for again."""

    @wraps(find)
    def found(model: Any) -> T:
        known = _KNOWN.get(id(model))
        if known is None:
            return find(model)
        if find.__name__ not in known:
            known[find.__name__] = find(model)
        return known[find.__name__]  # type: ignore[no-any-return]

    return found


@contextmanager
def remembered(model: Any) -> Iterator[None]:
    """While open, the model's configuration is taken to stay as it is."""
    _KNOWN[id(model)] = {}
    try:
        yield
    finally:
        del _KNOWN[id(model)]
