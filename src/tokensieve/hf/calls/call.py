"""One call under a sieve: what it needs, what it may not ask for, and how its limits are told.

B prompts, S prompt length.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.cache.memory import is_filled, note, shut
from tokensieve.hf.calls.callbacks import View
from tokensieve.hf.compress import Compressed
from tokensieve.hf.llm.cut import put_back
from tokensieve.hf.llm.stages import Stages
from tokensieve.hf.llm.unmerge import Unmerged
from tokensieve.hf.runtime import hooks
from tokensieve.hf.runtime.arguments import require_cache
from tokensieve.hf.runtime.compat import cache_of


@dataclass
class Call:
    """A `generate` or a forward at work in this thread.

    done: its prompt; None for a call that passes as it is. cache: what its own forwards are run
    with, once they have begun. work: what is at work during one forward. given: the caller's own
    arguments. repeats: rows of each prompt (beams). answer: the tokens generated.
    """

    done: Compressed | None = None
    stages: Stages | Unmerged | None = None
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

    def expanded(
        self, expand: Callable[..., Any], size: int, encoder_decoder: bool, ids: Tensor,
        kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        """Beams: rows repeated by prompt. And the mask `generate` drops where it is all ones,
        without which position gaps read as packed documents when there is no cache."""
        self.repeats = size
        rows = None
        if self.done is not None and self.done.shortened:
            rows = self.done.rows
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = torch.ones_like(ids)
        if rows is not None and size > 1:
            kwargs.pop("mm_encoder_outputs", None)
        ids, kwargs = expand(
            expand_size=size, is_encoder_decoder=encoder_decoder, input_ids=ids, **kwargs
        )
        if rows is not None and size > 1:
            kwargs["mm_encoder_outputs"] = rows.outputs(size)
        return ids, kwargs

    def note(self, model: Any, given: Any, *, renumber: bool) -> None:
        """Remember on the call's cache what it holds now. given: the cache handed to the call,
        which has nothing new in it if the call failed early."""
        cache = self.cache if self.cache is not None else given
        if cache is None or self.done is None:
            return
        memory = self.done.noted(model, self.given, renumber=renumber)
        if int(cache.get_seq_length()) < memory.short_length:
            shut(cache)
            return
        memory = memory.repeated(self.repeats)
        note(cache, replace(memory, answer=self.answer, stages=self.stages))


class Calls:
    """The calls at work, of each thread its own."""

    def __init__(self) -> None:
        self.here = threading.local()

    @property
    def stack(self) -> list[Call | None]:
        """Of this thread, innermost last; None: something that is no part of the call around it."""
        if not hasattr(self.here, "stack"):
            self.here.stack = []
        return self.here.stack  # type: ignore[no-any-return]

    @property
    def top(self) -> Call | None:
        """The innermost."""
        return self.stack[-1] if self.stack else None

    @contextmanager
    def at_work(self, call: Call | None) -> Iterator[None]:
        """Work on a call; None: on something that is not part of the call around it."""
        stack = self.stack
        depth = len(stack)
        stack.append(call)
        try:
            with hooks.apart():
                yield
        finally:
            del stack[depth:]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Work on something that is not part of the call around it."""
        with self.at_work(None):
            yield

    def sweep(self) -> None:
        """Drop forwards of this thread that an interrupt kept from ending: a model does not run
        itself."""
        while (call := self.top) is not None and not call.generating:
            call.work.close()
            self.stack.pop()


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
