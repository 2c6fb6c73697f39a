"""One call under a sieve: what it needs, what it may not ask for, and how its limits are told.

B prompts, S prompt length.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.arguments import require_cache
from tokensieve.hf.callbacks import View
from tokensieve.hf.compat import cache_of
from tokensieve.hf.compress import Compressed
from tokensieve.hf.cut import put_back
from tokensieve.hf.memory import is_filled
from tokensieve.hf.stages import Stages


@dataclass
class Call:
    """A `generate` or a forward at work in this thread.

    done: its prompt; None for a call that passes as it is. cache: what its own forwards are run
    with, once they have begun. work: what is at work during one forward. given: the caller's own
    arguments. repeats: rows of each prompt (beams). answer: the tokens generated.
    """

    done: Compressed | None = None
    stages: Stages | None = None
    generating: bool = False
    begun: bool = False
    cache: Any = None
    started: float = 0.0
    forwards: list[float] = field(default_factory=list)
    work: ExitStack = field(default_factory=ExitStack)
    given: Mapping[str, Any] = field(default_factory=dict)
    view: View | None = None
    repeats: int = 1
    answer: Tensor | None = None

    def owns(self, cache: Any) -> bool:
        """Whether a forward with this cache is one of the call's own."""
        return not self.begun or self.cache is None or cache is self.cache


def refuse_filled(inputs: Mapping[str, Any]) -> None:
    """Pictures of a plain forward behind a filled cache."""
    require_cache(cache_of(inputs))
    if is_filled(cache_of(inputs)):
        raise UnsupportedError(
            "Expected a prompt without a cache. Got pictures behind a filled cache in a forward. "
            "Use `model.generate`, which goes on with a chat, or pass the whole prompt, no cache."
        )
    refuse_paged(inputs)


def refuse_paged(inputs: Mapping[str, Any]) -> None:
    """Continuous batching."""
    if inputs.get("cache_implementation") == "paged":
        raise UnsupportedError(
            "Expected an ordinary cache. Got continuous batching ('paged'). Leave it out."
        )


def refuse_inside(model: Any, inputs: Mapping[str, Any]) -> None:
    """What `generate` cannot do while the layers of its cache differ in length."""
    if _option(model, inputs, "use_cache") is False:
        raise UnsupportedError(
            "Expected `generate` with a cache where tokens are dropped inside the LLM. Got "
            "use_cache=False, which would choose anew at every token. Leave it out."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size"):
        if _option(model, inputs, name):
            raise UnsupportedError(
                f"Expected plain decoding where tokens are dropped inside the LLM. Got {name}, "
                "which goes back over the cache. Leave it out."
            )


def refuse_behind(model: Any, inputs: Mapping[str, Any]) -> None:
    """What `generate` of Transformers gets wrong, or fails at, behind a filled cache."""
    if _option(model, inputs, "use_cache") is False:
        raise UnsupportedError(
            "Expected `generate` with a cache to go on behind one. Got use_cache=False. Leave it "
            "out, or pass the whole conversation and no cache."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens"):
        if _option(model, inputs, name):
            raise UnsupportedError(
                f"Expected plain decoding behind a filled cache. Got {name}, which takes it to "
                "hold all but the last token. Leave it out, or pass the whole conversation and no "
                "cache."
            )
    times = max(int(_option(model, inputs, n) or 1) for n in ("num_beams", "num_return_sequences"))
    if times > 1:
        raise UnsupportedError(
            f"Expected one answer to each conversation in a filled cache. Got {times} rows each "
            "(num_beams, num_return_sequences). Pass the whole conversation and no cache."
        )


def refuse_continuation(bound: Mapping[str, Any]) -> None:
    """A decode loop of the caller's own must say where its tokens stand."""
    cache, ids = cache_of(bound), bound.get("input_ids")
    if cache is None or ids is None or cache.get_seq_length() == 0:
        return
    mask = bound.get("attention_mask")
    length = cache.get_seq_length() + ids.shape[1]
    if bound.get("position_ids") is None or (mask is not None and mask.shape[-1] != length):
        raise UnsupportedError(
            "Expected `position_ids`, and a mask as long as cache and new tokens, to go on from a "
            "shortened prompt by hand. Got neither or other lengths. Use `model.generate`."
        )


def lengths(model: Any, kwargs: Mapping[str, Any], done: Compressed) -> dict[str, Any]:
    """Limits meant for the whole prompt, told as numbers of new tokens."""
    S = done.prompt_ids.shape[1]
    config = copy.copy(kwargs.get("generation_config") or model.generation_config)
    given = "generation_config" in kwargs and kwargs["generation_config"] is not None
    changed: dict[str, Any] = {}
    for old, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        limit = kwargs.get(old, getattr(config, old, None))
        told = kwargs.get(new, getattr(config, new, None))
        if not limit or told is not None:
            continue
        changed[old], changed[new] = None, limit - S if old == "max_length" else max(limit - S, 0)
        if given:
            setattr(config, old, None)
    if given and changed:
        changed["generation_config"] = config
    return changed


def with_prompt(out: Any, done: Compressed) -> Any:
    """`generate`'s result with the prompt as it was: callers cut by its length."""
    if not done.shortened:
        return out
    sequences = out if isinstance(out, Tensor) else out.sequences
    whole = done.prompt_ids.to(sequences.device)
    whole = whole.repeat_interleave(len(sequences) // len(whole), 0)
    sequences = torch.cat([whole, sequences[:, done.prompt_length :]], dim=1)
    if isinstance(out, Tensor):
        return sequences
    out.sequences = sequences
    return out


def answer_of(model: Any, call: Call, out: Any) -> Tensor | None:
    """(E, n) the tokens that `generate` added to the prompt it was given, as its cache holds them;
    None of beams, of which the cache may hold others."""
    if call.done is None or int(_option(model, call.given, "num_beams") or 1) > 1:
        return None
    sequences = out if isinstance(out, Tensor) else out.sequences
    return torch.as_tensor(sequences[:, call.done.prompt_length :])


def _option(model: Any, inputs: Mapping[str, Any], name: str) -> Any:
    """An option of `generate` as a call has it."""
    config = inputs.get("generation_config") or model.generation_config
    return inputs.get(name, getattr(config, name, None))


def beside_labels(output: Any, done: Compressed) -> Any:
    """A forward's output with logits as long as the prompt, (B, S, V), so that they stand beside
    its labels; zeros where a token was dropped, whose label never counts."""
    gather, S = done.gather, done.prompt_ids.shape[1]
    if gather is None:
        return output

    def longer(value: Any) -> Any:
        return put_back(value, gather, S)

    def is_short(value: Any) -> bool:
        return (
            isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == done.prompt_length
        )

    if isinstance(output, tuple):
        at = next((i for i, value in enumerate(output) if is_short(value)), None)
        return output if at is None else (*output[:at], longer(output[at]), *output[at + 1 :])
    if is_short(output.get("logits")):
        output["logits"] = longer(output["logits"])
    return output
