"""What differs between releases of Transformers: asked here, and nowhere else.

A name is probed in the signature of what takes it. One that is missing is an error at once: a
look-up that quietly finds nothing would turn a guard off.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import transformers

from tokensieve.errors import UnsupportedError

CACHE_NAMES = ("cache", "past_key_values")  # since 5.24, before


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among a call's arguments or in its output, by whichever name; None if none."""
    found = (arguments.get(name) for name in CACHE_NAMES)
    return next((value for value in found if value is not None), None)


def cache_at(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The KV cache that `module`, the decoder or a layer of it, is about to be run with.

    Raises `UnsupportedError` for a module whose forward takes none by a known name.
    """
    name, place = _cache_place(type(module))
    if name in kwargs:
        return kwargs[name]
    return args[place] if place is not None and place < len(args) else None


@cache
def _cache_place(kind: type) -> tuple[str, int | None]:
    """Under what name, and where in a row, the forward of a class of modules takes the cache."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    for place, parameter in enumerate(parameters):
        if parameter.name in CACHE_NAMES:
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            return parameter.name, place if positional else None
    raise UnsupportedError(
        f"Expected {kind.__name__} to take its KV cache as one of {', '.join(CACHE_NAMES)}. Got "
        f"{', '.join(p.name for p in parameters)} in Transformers {transformers.__version__}. Use "
        "a method that acts before the LLM, or a release of Transformers that tokensieve is "
        "tested with."
    )
