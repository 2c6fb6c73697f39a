"""What differs between releases of Transformers: asked here, and nowhere else.

A name is probed in the signature of what takes it. One that is missing is an error at once: a
look-up that quietly finds nothing would turn a guard off.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from types import CodeType, FrameType
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokensieve.errors import UnsupportedError

CACHE_NAMES = ("cache", "past_key_values")  # since 5.24, before
# steps of `generate` that a sieve takes part in
GENERATION = (
    "generate",
    "_expand_inputs_for_generation",
    "_prepare_position_ids_for_generation",
    "_get_logits_processor",
    "_get_stopping_criteria",
)


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among a call's arguments or in its output, by whichever name; None if none."""
    found = (arguments.get(name) for name in CACHE_NAMES)
    return next((value for value in found if value is not None), None)


def cache_in(output: Any) -> Any:
    """The KV cache in a model's output, a tuple or not; None if there is none."""
    if isinstance(output, Mapping):
        return cache_of(output)
    parts = output if isinstance(output, tuple) else ()
    return next((part for part in parts if isinstance(part, Cache)), None)


def cache_at(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The KV cache that `module`, the decoder or a layer of it, is about to be run with.

    Raises `UnsupportedError` for a module whose forward takes none by a known name.
    """
    kind: Any = type(module)
    name, place = _cache_place(kind)
    if name in kwargs:
        return kwargs[name]
    return args[place] if place is not None and place < len(args) else None


@cache
def _cache_place(kind: Any) -> tuple[str, int | None]:
    """Under what name, and where in a row, the forward of a class of modules takes the cache."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
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


def require_generation(model: Any) -> None:
    """Raise `UnsupportedError` where `generate` of this release lacks a step that a sieve takes
    part in, for then it would be left out in silence."""
    missing = [name for name in GENERATION if not callable(getattr(model, name, None))]
    if missing:
        raise UnsupportedError(
            f"Expected {type(model).__name__} to generate by {', '.join(GENERATION)}. Got none of "
            f"the name {', '.join(missing)} in Transformers {transformers.__version__}. Use a "
            "release that tokensieve is tested with, or `compress`."
        )


def require_layer(layer: Any) -> None:
    """Raise `UnsupportedError` for a decoder layer that takes its inputs under names not known."""
    kind: Any = type(layer)
    _cache_place(kind)
    names = inspect.signature(kind.forward).parameters
    missing = [name for name in ("hidden_states", "attention_mask") if name not in names]
    if missing:
        raise UnsupportedError(
            f"Expected {kind.__name__} to take `hidden_states` and `attention_mask`. Got no "
            f"{' and no '.join(missing)} in Transformers {transformers.__version__}. Use a method "
            "that acts before the LLM."
        )


def positions_for(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids of whole prompts as `generate` makes them.

    Asked of a shadow: a model with M-RoPE notes the deltas on itself, and another thread may be
    using it.
    """
    shadow = shadow_of(model)
    known = {name: value for name, value in inputs.items() if name not in CACHE_NAMES}
    return torch.as_tensor(shadow._prepare_position_ids_for_generation(known["input_ids"], known))


def layers_of_cache(model: Any) -> int:
    """How many layers a filled KV cache of a model has."""
    return len(DynamicCache(config=model.config.get_text_config(decoder=True)).layers)


def require_token_types(model: Any, inputs: Mapping[str, Any], pictures_BS: Tensor) -> None:
    """Raise `UnsupportedError` for pictures behind a filled cache that this release would mask by
    the wrong places (Gemma 3 before 5.23): it hands the model the token types of new tokens only.
    """
    types = inputs.get("token_type_ids")
    if types is None or not bool(pictures_BS.any()):
        return
    made = model.prepare_inputs_for_generation(
        inputs["input_ids"], next_sequence_length=1, is_first_iteration=True,
        attention_mask=inputs["attention_mask"], token_type_ids=types,
    )  # fmt: skip
    if (told := made.get("token_type_ids")) is None or told.shape != types.shape:
        raise UnsupportedError(
            f"Expected new pictures of {type(model).__name__} without a filled cache, behind which "
            f"Transformers {transformers.__version__} reads them wrong. Got a filled cache. Pass "
            "the whole conversation and no cache, or install a newer Transformers."
        )


def shadow_of(model: Any) -> Any:
    """The model and its base model under other identities: what a forward notes on them is gone
    with them."""
    base, shadow = model.base_model, _shadow(model)
    if base is not model:
        shadow._modules[model.base_model_prefix] = _shadow(base)
    return shadow


def _shadow(module: Any) -> Any:
    """The same module under another identity: attributes set on it stay with it."""
    shadow = object.__new__(type(module))
    shadow.__dict__ = {**module.__dict__, "_modules": dict(module._modules)}
    return shadow


def in_plain_generate() -> bool:
    """Whether this thread is inside a `generate` of Transformers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _generate_codes():
        frame = frame.f_back
    return frame is not None


def generating_config(frame: FrameType | None) -> tuple[Any, Any, int] | None:
    """Of the `generate` that `frame` is inside: its own generation config, the cache its forward is
    run with, and the rows of ids; None where there is no such call or it has no cache."""
    held: tuple[Any, int] | None = None
    while frame is not None:
        if frame.f_code in _generate_codes():
            config = frame.f_locals.get("generation_config")
            return None if held is None or config is None else (config, *held)
        if held is None:
            given = frame.f_locals
            cache, ids = cache_of(given), given.get("input_ids")
            if isinstance(cache, Cache) and isinstance(ids, Tensor):
                held = cache, len(ids)
        frame = frame.f_back
    return None


@cache
def _generate_codes() -> frozenset[CodeType]:
    return frozenset({inspect.unwrap(GenerationMixin.generate).__code__})


def follows_interface(config: Any) -> bool:
    """Whether attention with this config looks its function up by name."""
    return getattr(config, "_attn_implementation", None) is not None


def set_attention(config: Any, name: str) -> None:
    """Have attention with this very config look up `name`; sub-configs are not told."""
    config._attn_implementation_internal = name
    if config._attn_implementation != name:
        raise UnsupportedError(
            "Expected `_attn_implementation_internal` to name a config's attention function. Got "
            f"no such thing in Transformers {transformers.__version__}. Use a method that reads no "
            "attention."
        )


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Offer an attention function under a name."""
    ALL_ATTENTION_FUNCTIONS[name] = function


def forget_attention(name: str) -> None:
    """Take it back. Not while there are other threads: one may have read the name a moment ago, and
    be about to look it up."""
    if threading.active_count() == 1 and name in ALL_ATTENTION_FUNCTIONS:
        del ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-untyped-call]


def attention_of(module: Any, config: Any) -> Callable[..., Any]:
    """The attention function a module uses by its `config`."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)  # type: ignore[arg-type]
    if attend is None:
        raise UnsupportedError(
            f"Expected `eager_attention_forward` beside {type(module).__name__}. Got none in "
            f"Transformers {transformers.__version__}. Load the model with "
            "attn_implementation='sdpa'."
        )
    return attend  # type: ignore[no-any-return]
