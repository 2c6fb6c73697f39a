"""Compressed inputs in a `generate` of the plain model: what its cache holds is noted all the same.

`compress` patches nothing, so nothing of ours runs in that call but the encoder's output, at the
moment the model reads it. There the cache of the call is noted. It takes in as long as the call
lives, of which its own copy of the generation config tells; afterwards it is shut like any cache
that holds less than the prompt.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from functools import cache as cached
from typing import Any

from tokensieve.hf.cache.memory import Memory, lend
from tokensieve.hf.runtime.compat import generating_config

_READ = "pooler_output"
_NOTE = "_tokensieve"


def told(output: Any, memory: Memory) -> Any:
    """The encoder's `output`, which notes `memory` on the cache of the call that reads it."""
    kind: Any = type(output)
    new = _told(kind)(**dict(output))
    object.__setattr__(new, _NOTE, memory)
    return new


@cached
def _told(kind: Any) -> Any:
    """A class of outputs that note who reads them."""

    def read(self: Any, name: Any) -> Any:
        if name == _READ:
            _note_cache(self)
        return kind.__getattribute__(self, name)

    def item(self: Any, name: Any) -> Any:
        if name == _READ:
            _note_cache(self)
        return kind.__getitem__(self, name)

    members = {"__getattribute__": read, "__getitem__": item, "__module__": kind.__module__}
    return dataclass(type(kind.__name__, (kind,), members))


def _note_cache(output: Any) -> None:
    """Note on the cache of the `generate` that this thread is in, if it is in one, what it will
    hold."""
    memory: Memory | None = object.__getattribute__(output, "__dict__").get(_NOTE)
    if memory is None or (found := generating_config(sys._getframe(1))) is None:
        return
    config, cache, rows = found
    lend(cache, memory.repeated(rows // len(memory.prompt_ids)), weakref.ref(config))
