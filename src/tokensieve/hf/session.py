"""The mechanics of an open sieve: what is put on the model instance, and taken off again.

Everything a call needs belongs to the call, which lives in the thread that makes it. What lies on
the model lies there for all threads, does nothing by itself, and stays until the sieve is closed
and the last call begun under it is over.

B prompts, S prompt length.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf import hooks
from tokensieve.hf.ahead import installed
from tokensieve.hf.arguments import require_cache, require_inputs
from tokensieve.hf.callbacks import View
from tokensieve.hf.compat import cache_of, in_plain_generate, require_generation
from tokensieve.hf.compress import Compressed, Plan, apply_plan, stage_plan
from tokensieve.hf.encode import PIXELS, refuse_unsupported, require_both
from tokensieve.hf.hooks import Point, When
from tokensieve.hf.report import Report
from tokensieve.hf.stages import Stages
from tokensieve.hf.timing import now_ms

_PATCHED = (
    "generate",
    "generate_batch",
    "_expand_inputs_for_generation",
    "_get_logits_processor",
    "_get_stopping_criteria",
)


@dataclass
class _Call:
    """A `generate` or a forward at work in this thread.

    done: its prompt; None for a call that passes as it is. cache: what its own forwards are run
    with, once they have begun. work: what is at work during one forward. given: the caller's own
    processors and criteria.
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

    def owns(self, cache: Any) -> bool:
        """Whether a forward with this cache is one of the call's own."""
        return not self.begun or self.cache is None or cache is self.cache


class Session:
    """Patches one model instance while open; restores it when the last call is over."""

    def __init__(self, model: Any, plan: Plan, report: Report) -> None:
        self.model, self.plan, self.report = model, plan, report
        self.signature = inspect.signature(type(model).forward)
        self.original: dict[str, Any] = {}
        self.open, self.users = False, 0
        self.held = ExitStack()  # what lies on the model
        self.here = threading.local()
        self.last: Stages | None = None  # of a prompt read by a plain forward, to go on by hand

    def __enter__(self) -> Session:
        require_generation(self.model)
        with hooks.locked():
            if hooks.is_mounted(self.model, "generate"):
                raise ConfigError(
                    "Expected one open sieve per model. Got a second one, while the first is open "
                    "or a call begun under it is at work in another thread. Close the first and "
                    "let its calls end, or use `compress`."
                )
            self.held.enter_context(installed(self.model, self.plan))
            points = (Point(self.model, When.BEFORE), Point(self.model, When.FINALLY))
            self.held.enter_context(hooks.installed(points))
            for name, mine in zip(_PATCHED, self._patches(), strict=True):
                self.original[name] = getattr(self.model, name)
                hooks.mount(self.model).set(name, mine)
                self.held.callback(hooks.mount(self.model).unset, name)
            for point, action in zip(
                points, (self.before_forward, self.after_forward), strict=True
            ):
                hooks.stand(point, action)
            self.open, self.users = True, 1
        return self

    def _patches(self) -> tuple[Any, ...]:
        return self.generate, self.refuse_batch, self.expand, self.processors, self.criteria

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.open = False
        self._leave()

    @contextmanager
    def _using(self) -> Iterator[bool]:
        """What lies on the model stays while this is open. Gives whether the sieve is."""
        with hooks.locked():
            self.users += 1
        try:
            yield self.open
        finally:
            self._leave()

    def _leave(self) -> None:
        with hooks.locked():
            self.users -= 1
            if self.users == 0:
                self.held.close()

    @property
    def calls(self) -> list[_Call | None]:
        """The calls at work in this thread, innermost last; None: something that is no part of
        them."""
        if not hasattr(self.here, "calls"):
            self.here.calls = []
        return self.here.calls  # type: ignore[no-any-return]

    @property
    def call(self) -> _Call | None:
        """The innermost call at work in this thread."""
        return self.calls[-1] if self.calls else None

    @contextmanager
    def _calling(self, call: _Call | None) -> Iterator[None]:
        """Work on a call; None: on something that is not part of the call around it."""
        calls = self.calls
        depth = len(calls)
        calls.append(call)
        try:
            with hooks.apart():
                yield
        finally:
            del calls[depth:]

    @contextmanager
    def _apart(self) -> Iterator[None]:
        with self._calling(None):
            yield

    # -- generate

    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any
    ) -> Any:
        """`generate` over shortened prompts, giving back the prompts as they were."""
        if inputs is not None:
            kwargs["input_ids"] = inputs
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        self._sweep()
        with self._using() as is_open:
            if not is_open:  # closed since the name was looked up
                with self._calling(_Call(generating=True)):
                    return self.original["generate"](**kwargs)
            return self._generate(kwargs)

    def _generate(self, kwargs: dict[str, Any]) -> Any:
        _refuse(kwargs)
        if self.plan.stages:
            _refuse_inside(self.model, kwargs)
        with self._apart(), torch.no_grad():  # as in `generate` itself
            done, stages = self._apply(kwargs)
        ready = now_ms(self.model.device)
        call = _Call(done, stages, generating=True, given=kwargs)
        arguments = done.inputs
        if done.shortened:
            arguments |= _lengths(self.model, kwargs, done)
        call.view = View(done.prompt_ids, done.prompt_length, self._apart)
        for name, seen in (
            ("prefix_allowed_tokens_fn", call.view.constraint),
            ("streamer", call.view.streamer),
        ):
            if arguments.get(name) is not None:
                arguments[name] = seen(arguments[name])
        with self._calling(call):
            try:
                out = self.original["generate"](**arguments)
            finally:
                call.work.close()
        spent = now_ms(self.model.device) - ready
        prefill = call.forwards[0] if call.forwards else 0.0
        self._record(call, prefill=prefill, decode=spent - prefill)
        return _with_prompt(out, done)

    def _apply(self, inputs: Mapping[str, Any]) -> tuple[Compressed, Stages | None]:
        """Shorten the prompt, or get ready to shorten it inside the LLM."""
        if not self.plan.stages:
            return apply_plan(self.model, self.plan, inputs), None
        return stage_plan(self.model, self.plan, inputs)

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
        done = None if self.call is None else self.call.done
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

    def processors(self, *args: Any, **kwargs: Any) -> Any:
        """The logits processors of a call, the caller's own shown the caller's prompt."""
        made = self.original["_get_logits_processor"](*args, **kwargs)
        if (call := self.call) is None or call.view is None:
            return made
        return call.view.shown(made, call.given.get("logits_processor"))

    def criteria(self, *args: Any, **kwargs: Any) -> Any:
        """The stopping criteria of a call, the caller's own shown the caller's prompt."""
        made = self.original["_get_stopping_criteria"](*args, **kwargs)
        if (call := self.call) is None or call.view is None:
            return made
        return call.view.criteria(made, call.given.get("stopping_criteria"))

    # -- forwards

    def before_forward(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Shorten a plain forward; put the stages to work in one of `generate`'s own."""
        bound = self.signature.bind_partial(self.model, *args, **kwargs).arguments
        bound.pop(next(iter(self.signature.parameters)))
        bound |= bound.pop("kwargs", {})
        self._sweep()
        call, cache = self.call, cache_of(bound)
        if call is not None and call.generating and call.owns(cache):
            call.begun, call.cache = True, call.cache if call.cache is not None else cache
            self._work(call)
            return None
        mine, alone = _Call(), not self.calls
        self.calls.append(mine)
        if not self.open or (alone and in_plain_generate()):
            return None  # begun after the sieve was closed, or before it was opened
        if module is not self.model:
            raise UnsupportedError(
                "Expected the model the sieve was opened on. Got a copy of it, as DataParallel "
                "makes. Run one process per device, each with a sieve of its own."
            )
        mine.done, mine.stages = self._shorten_forward(bound)
        self._work(mine)
        return None if mine.done is None else ((), mine.done.inputs)

    def _sweep(self) -> None:
        """Drop forwards of this thread that an interrupt kept from ending: a model does not run
        itself."""
        while (call := self.call) is not None and not call.generating:
            call.work.close()
            self.calls.pop()

    def _work(self, call: _Call) -> None:
        """Begin a forward of a call."""
        if call.stages is not None:
            call.work.enter_context(call.stages.at_work())
        call.started = now_ms(self.model.device)

    def _shorten_forward(self, bound: dict[str, Any]) -> tuple[Compressed | None, Stages | None]:
        cache = cache_of(bound)
        pictures = any(bound.get(key) is not None for key in PIXELS)
        if not pictures and not bound.get("mm_encoder_outputs"):
            if cache is not None and cache.get_seq_length() > 0:
                _refuse_continuation(bound)
                ours = self.last is not None and cache is self.last.cache
                return None, self.last if ours else None
            refuse_unsupported(bound)
            place_BS = bound["input_ids"] == self.model.config.image_token_id
            if bool(place_BS.any()):
                require_both(place_BS, pictures=False)
            return None, None
        _refuse(bound)
        require_inputs(bound)
        refuse_unsupported(bound)
        if bound.get("attention_mask") is None:
            bound["attention_mask"] = torch.ones_like(bound["input_ids"])
        with self._apart():
            done, stages = self._apply(bound)
        self.last = stages
        return done, stages

    def after_forward(self, _module: Any, _args: Any, output: Any) -> None:
        """Note the time; a plain forward is recorded here, unless it failed."""
        call = self.call
        if call is None:
            return
        call.work.close()
        if call.generating:
            call.forwards.append(now_ms(self.model.device) - call.started)
            return
        self.calls.pop()
        if output is not None and call.done is not None:
            self._record(call, prefill=now_ms(self.model.device) - call.started)

    def _record(self, call: _Call, **ms: float) -> None:
        if call.done is None:
            return
        made = call.done.report.calls[0]
        if call.stages is not None:
            made = call.stages.call(made.ms)
        self.report.add(replace(made, ms={**made.ms, **ms}))


def _refuse(inputs: Mapping[str, Any]) -> None:
    cache = cache_of(inputs)
    require_cache(cache)
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
