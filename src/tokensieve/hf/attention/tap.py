"""Queries and keys of attention modules, read while SDPA or FlashAttention stays on.

Transformers looks up the attention function by a name in the module's config. A tapped module gets
a copy of its config with our name in it; our function shows queries and keys to whoever listens in
this thread and calls the one of the former name, or who attends in its place. Nothing else of the
model changes, and our entry in the registry goes with the last tap.

B sequences, H heads, G key heads, N tokens, d width of a head.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import UnsupportedError
from tokensieve.hf.runtime import compat
from tokensieve.hf.runtime.hooks import locked, mount

# module, (B, H, N, d) queries, (B, G, N, d) keys, scaling, mask as the attention gets it
Seen = Callable[[nn.Module, Tensor, Tensor, float, Tensor | None], None]
# module, (B, G, N, d) keys; gives what is added to their logits, to be broadcast, or None
Added = Callable[[nn.Module, Tensor], Tensor | None]
# the module's own function, then what that is told; gives what that gives
Instead = Callable[..., Any]

_NAME = "tokensieve_tap"
_HERE = threading.local()
_TAPS: dict[int, int] = {}  # how often each module is tapped, by id


@contextmanager
def installed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep attention `modules` tapped, so that calls need not tap them and undo it.

    Raises `UnsupportedError` for a module that does not look its attention function up by name.
    """
    done: list[nn.Module] = []
    try:
        for module in modules:
            _tap(module)
            done.append(module)
        yield
    finally:
        for module in reversed(done):
            _untap(module)


@contextmanager
def tapped(modules: Iterable[nn.Module], seen: Seen) -> Iterator[None]:
    """While open, `seen` is called with what each of the attention `modules` is about to attend in
    this thread.

    Raises `UnsupportedError` for a module that does not look its attention function up by name.
    """
    with _listed(modules, "listeners", seen):
        yield


@contextmanager
def weighed(modules: Iterable[nn.Module], added: Added) -> Iterator[None]:
    """While open, what `added` gives is added to the logits of the attention `modules` in this
    thread, and `tapped` is shown a mask that it is part of. Attention must take a mask of numbers.

    Raises `UnsupportedError` for a module that does not look its attention function up by name.
    """
    with _listed(modules, "weights", added):
        yield


@contextmanager
def _listed(modules: Iterable[nn.Module], name: str, who: Any) -> Iterator[None]:
    modules = list(modules)
    with installed(modules):
        listed = _here(name)
        entry = (frozenset(id(module) for module in modules), who)
        listed.append(entry)
        try:
            yield
        finally:
            listed.remove(entry)


@contextmanager
def replaced(modules: Iterable[nn.Module], instead: Instead) -> Iterator[None]:
    """While open, `instead` attends in this thread in the place of the modules' own function.

    Raises `UnsupportedError` for a module that does not look its attention function up by name.
    """
    modules = list(modules)
    with installed(modules):
        before = getattr(_HERE, "instead", {})
        _HERE.instead = before | {id(module): instead for module in modules}
        try:
            yield
        finally:
            _HERE.instead = before


def _here(name: str) -> list[tuple[frozenset[int], Any]]:
    if not hasattr(_HERE, name):
        setattr(_HERE, name, [])
    return getattr(_HERE, name)  # type: ignore[no-any-return]


def _tap(module: nn.Module) -> None:
    with locked():
        if id(module) not in _TAPS:
            config: Any = getattr(module, "config", None)
            if not compat.follows_interface(config):
                raise UnsupportedError(
                    "Expected attention modules that follow Transformers' attention interface. "
                    f"Got {type(module).__name__}. Use a method that reads no attention."
                )
            if not _TAPS:
                compat.register_attention(_NAME, _attend)
            tap = copy.copy(config)
            compat.set_attention(tap, _NAME)
            tap.tokensieve = config
            mount(module).set("config", tap)
        _TAPS[id(module)] = _TAPS.get(id(module), 0) + 1


def _untap(module: nn.Module) -> None:
    with locked():
        _TAPS[id(module)] -= 1
        if _TAPS[id(module)]:
            return
        del _TAPS[id(module)]
        mount(module).unset("config")
        if not _TAPS:
            compat.forget_attention(_NAME)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> Any:
    """Show queries and keys to who listens in this thread, then attend as before."""
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    for modules, added in list(_here("weights")):
        if id(module) in modules and (bias := added(module, key)) is not None:
            attention_mask = _sum(attention_mask, bias.to(query))
    mask = attention_mask if isinstance(attention_mask, Tensor) else None
    for modules, seen in list(_here("listeners")):
        if id(module) in modules:
            seen(module, query, key, scaling, mask)
    config = module.config
    config = getattr(config, "tokensieve", config)  # untapped in another thread meanwhile
    attend = compat.attention_of(module, config)
    if (instead := getattr(_HERE, "instead", {}).get(id(module))) is not None:
        return instead(attend, module, query, key, value, attention_mask, **options)
    return attend(module, query, key, value, attention_mask, **options)


def _sum(mask: Tensor | None, bias: Tensor) -> Tensor:
    if mask is None:
        return bias
    if mask.dtype != torch.bool:
        return mask + bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min)
