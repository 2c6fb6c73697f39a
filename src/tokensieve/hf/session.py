"""The mechanics of an open sieve: what is put on the model instance, and taken off again.

B prompts, S prompt length.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf.compat import cache_of
from tokensieve.hf.compress import Compressed, Plan, apply_plan, stage_plan
from tokensieve.hf.encode import PIXELS, refuse_unsupported, require_both
from tokensieve.hf.report import Report
from tokensieve.hf.stages import Stages
from tokensieve.hf.timing import now_ms

_PATCHED = ("generate", "generate_batch", "_expand_inputs_for_generation")
_MISSING = object()


class Session:
    """Patches one model instance while open; restores it on exit, exceptions included."""

    def __init__(self, model: Any, plan: Plan, report: Report) -> None:
        self.model, self.plan, self.report = model, plan, report
        self.current: Compressed | None = None  # the prompt `generate` is working on
        self.stages: Stages | None = None  # of the last prompt, for what is decoded after it
        self.stage_hooks: list[Any] = []
        self.inside_generate = False
        self.started = 0.0
        self.forwards: list[float] = []

    def __enter__(self) -> Session:
        if isinstance(getattr(self.model.__dict__.get("generate"), "__self__", None), Session):
            raise ConfigError(
                "Expected one open sieve per model. Got a second one inside it. Close the first, "
                "or use `compress`."
            )
        self.before = {name: self.model.__dict__.get(name, _MISSING) for name in _PATCHED}
        self.original: dict[str, Any] = {name: getattr(self.model, name) for name in _PATCHED}
        self.deltas = getattr(self.model.base_model, "rope_deltas", None)
        self.signature = inspect.signature(type(self.model).forward)
        self.model.generate = self.generate
        self.model.generate_batch = self.refuse_batch
        self.model._expand_inputs_for_generation = self.expand
        self.hooks = [
            self.model.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            self.model.register_forward_hook(self.after_forward, always_call=True),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._unhook_stages()
        for hook in self.hooks:
            hook.remove()
        for name, value in self.before.items():
            if value is _MISSING:
                del self.model.__dict__[name]
            else:
                self.model.__dict__[name] = value
        if hasattr(self.model.base_model, "rope_deltas"):
            self.model.base_model.rope_deltas = self.deltas

    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any
    ) -> Any:
        """`generate` over shortened prompts, giving back the prompts as they were."""
        if inputs is not None:
            kwargs["input_ids"] = inputs
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        _refuse(kwargs)
        if self.plan.stages:
            _refuse_inside(self.model, kwargs)
        with torch.no_grad():  # as in `generate` itself
            done = self._apply(kwargs)
        ready = now_ms(self.model.device)
        arguments = done.inputs
        if done.shortened:
            arguments |= _lengths(self.model, kwargs, done)
            self._remember(done)
        self.current, self.inside_generate, self.forwards = done, True, []
        try:
            with nullcontext() if self.stages is None else self.stages.hooked():
                out = self.original["generate"](**arguments)
        finally:
            self.current, self.inside_generate = None, False
        spent = now_ms(self.model.device) - ready
        prefill = self.forwards[0] if self.forwards else 0.0
        self._record(done, prefill=prefill, decode=spent - prefill)
        return _with_prompt(out, done)

    def _apply(self, inputs: Mapping[str, Any]) -> Compressed:
        """Shorten the prompt, or get ready to shorten it inside the LLM."""
        if not self.plan.stages:
            return apply_plan(self.model, self.plan, inputs)
        done, self.stages = stage_plan(self.model, self.plan, inputs)
        return done

    def _unhook_stages(self) -> None:
        for hook in self.stage_hooks:
            hook.remove()
        self.stage_hooks = []

    def refuse_batch(self, *_args: Any, **_kwargs: Any) -> None:
        """Continuous batching packs prompts in ways a shortened one does not survive."""
        raise UnsupportedError(
            "Expected `generate`. Got continuous batching, which a sieve does not support. "
            "Call `model.generate(**inputs)` with a padded batch."
        )

    def expand(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Beams: rows repeated by prompt. And the mask `generate` drops where it is all ones,
        without which position gaps read as packed documents when there is no cache."""
        done = self.current
        rows = None
        if done is not None and done.shortened:
            rows = done.rows
            if kwargs.get("attention_mask") is None:
                kwargs["attention_mask"] = torch.ones_like(input_ids)
        if rows is not None and expand_size > 1:
            kwargs.pop("mm_encoder_outputs", None)
        ids, kwargs = self.original["_expand_inputs_for_generation"](
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **kwargs,
        )
        if rows is not None and expand_size > 1:
            kwargs["mm_encoder_outputs"] = {"image": rows.output(expand_size)}
        return ids, kwargs

    def before_forward(
        self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Shorten a plain forward; leave those inside `generate` alone."""
        changed = None
        if not self.inside_generate:
            bound = self.signature.bind_partial(self.model, *args, **kwargs).arguments
            bound.pop(next(iter(self.signature.parameters)))
            bound |= bound.pop("kwargs", {})
            self.current = self._shorten_forward(bound)
            if self.current is not None:
                changed = (), self.current.inputs
        self.started = now_ms(self.model.device)
        return changed

    def _shorten_forward(self, bound: dict[str, Any]) -> Compressed | None:
        cache = cache_of(bound)
        pictures = any(bound.get(key) is not None for key in PIXELS)
        if not pictures and not bound.get("mm_encoder_outputs"):
            if cache is not None and cache.get_seq_length() > 0:
                _refuse_continuation(bound)
                if self.stages is not None and cache is self.stages.cache:
                    self.stage_hooks = self.stages.hook()
                return None
            refuse_unsupported(bound)
            place_BS = bound["input_ids"] == self.model.config.image_token_id
            if bool(place_BS.any()):
                require_both(place_BS, pictures=False)
            return None
        _refuse(bound)
        refuse_unsupported(bound)
        if bound.get("attention_mask") is None:
            bound["attention_mask"] = torch.ones_like(bound["input_ids"])
        done = self._apply(bound)
        if self.stages is not None:
            self.stage_hooks = self.stages.hook()
        self._remember(done)
        return done

    def after_forward(self, _module: Any, _args: Any, output: Any) -> None:
        """Note the time; a plain forward is recorded here, unless it failed."""
        self._unhook_stages()
        self.forwards.append(now_ms(self.model.device) - self.started)
        if self.inside_generate or self.current is None:
            return
        if output is not None:
            self._record(self.current, prefill=self.forwards[-1])
        self.current = None

    def _remember(self, done: Compressed) -> None:
        """M-RoPE models keep the distance between length and position for the next token."""
        if done.rope_deltas is not None:
            self.model.base_model.rope_deltas = done.rope_deltas

    def _record(self, done: Compressed, **ms: float) -> None:
        call = done.report.calls[0]
        if self.stages is not None:
            call = self.stages.call(call.ms)
        self.report.calls.append(replace(call, ms={**call.ms, **ms}))


def _refuse(inputs: Mapping[str, Any]) -> None:
    cache = cache_of(inputs)
    if cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedError(
            "Expected a prompt without a cache. Got pictures behind a filled cache, whose tokens "
            "a sieve can no longer tell apart. Pass the whole prompt and no `past_key_values`."
        )
    if inputs.get("cache_implementation") == "paged":
        raise UnsupportedError(
            "Expected an ordinary cache. Got continuous batching ('paged'). Leave it out."
        )


def _refuse_inside(model: Any, inputs: Mapping[str, Any]) -> None:
    """What `generate` cannot do while the layers of its cache differ in length."""
    config = inputs.get("generation_config") or model.generation_config

    def option(name: str) -> Any:
        return inputs.get(name, getattr(config, name, None))

    if option("use_cache") is False:
        raise UnsupportedError(
            "Expected `generate` with a cache where tokens are dropped inside the LLM. Got "
            "use_cache=False, which would choose anew at every token. Leave it out."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size"):
        if option(name):
            raise UnsupportedError(
                f"Expected plain decoding where tokens are dropped inside the LLM. Got {name}, "
                "which goes back over the cache. Leave it out."
            )


def _refuse_continuation(bound: Mapping[str, Any]) -> None:
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


def _lengths(model: Any, kwargs: Mapping[str, Any], done: Compressed) -> dict[str, Any]:
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


def _with_prompt(out: Any, done: Compressed) -> Any:
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
