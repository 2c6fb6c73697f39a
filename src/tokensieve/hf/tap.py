"""Queries and keys of attention modules, read while SDPA or FlashAttention stays on.

Transformers looks up the attention function by a name in the module's config. A tapped module gets
a copy of its config with our name in it; our function shows queries and keys and calls the one of
the former name. Nothing else of the model changes, and no entry of the registry is replaced.

B sequences, H heads, G key heads, N tokens, d width of a head.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from tokensieve.errors import UnsupportedError

# module, (B, H, N, d) queries, (B, G, N, d) keys, scaling, mask as the attention gets it
Seen = Callable[[nn.Module, Tensor, Tensor, float, Tensor | None], None]

_NAME = "tokensieve_tap"


@contextmanager
def tapped(modules: Iterable[nn.Module], seen: Seen) -> Iterator[None]:
    """While open, `seen` is called with what each of the attention `modules` is about to attend.

    Raises `UnsupportedError` for a module that does not look its attention function up by name.
    """
    AttentionInterface.register(_NAME, _attend)
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            config: Any = getattr(module, "config", None)
            if getattr(config, "_attn_implementation", None) is None:
                raise UnsupportedError(
                    "Expected attention modules that follow Transformers' attention interface. "
                    f"Got {type(module).__name__}. Use a method that reads no attention."
                )
            tap = copy.copy(config)
            tap._attn_implementation_internal = _NAME  # the property would tell sub-configs too
            tap.tokensieve = (seen, config)
            before.append((module, config))
            module.config = tap
        yield
    finally:
        for module, config in reversed(before):
            module.config = config


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> Any:
    """Show queries and keys to every open tap, then attend as before."""
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    mask, config = attention_mask if isinstance(attention_mask, Tensor) else None, module.config
    while (tap := getattr(config, "tokensieve", None)) is not None:
        seen, config = tap
        seen(module, query, key, scaling, mask)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)  # type: ignore[arg-type]
    return attend(module, query, key, value, attention_mask, **options)
