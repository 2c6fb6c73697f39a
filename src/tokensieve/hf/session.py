"""The mechanics of an open sieve: what is put on the model instance, and taken off again.

Everything a call needs belongs to the call, which lives in the thread that makes it. What lies on
the model lies there for all threads, does nothing by itself, and stays until the sieve is closed
and the last call begun under it is over.

B prompts, S prompt length.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.hf.cache.memory import is_filled, memory_of, read_by_hand, shut, unshut
from tokensieve.hf.calls.ahead import installed
from tokensieve.hf.calls.call import (
    Call,
    Calls,
    answer_of,
    beside_labels,
    lengths,
    refuse_continuation,
    refuse_filled,
    refuse_inside,
    refuse_paged,
    with_prompt,
)
from tokensieve.hf.calls.callbacks import View
from tokensieve.hf.calls.turn import next_turn
from tokensieve.hf.compress import Compressed, Plan
from tokensieve.hf.encoder.encode import PIXELS, refuse_unsupported
from tokensieve.hf.families.table import places_of
from tokensieve.hf.llm.stages import Stages
from tokensieve.hf.llm.unmerge import Unmerged
from tokensieve.hf.report import Report
from tokensieve.hf.runtime import hooks
from tokensieve.hf.runtime.arguments import require_both, require_cache, require_inputs
from tokensieve.hf.runtime.compat import cache_in, cache_of, in_plain_generate, require_generation
from tokensieve.hf.runtime.hooks import Point, When
from tokensieve.hf.runtime.once import remembered
from tokensieve.hf.runtime.timing import now_ms
from tokensieve.hf.unmerging import shorten

_PATCHED = (
    "generate",
    "generate_batch",
    "_expand_inputs_for_generation",
    "_get_logits_processor",
    "_get_stopping_criteria",
)


class Session:
    """Patches one model instance while open; restores it when the last call is over."""

    def __init__(self, model: Any, plan: Plan, report: Report) -> None:
        self.model, self.plan, self.report = model, plan, report
        self.signature = inspect.signature(type(model).forward)
        self.original: dict[str, Any] = {}
        self.open, self.users = False, 0
        self.held = ExitStack()  # what lies on the model
        self.calls = Calls()

    def __enter__(self) -> Session:
        require_generation(self.model)
        with hooks.locked():
            if hooks.is_mounted(self.model, "generate"):
                raise ConfigError(
                    "Expected one open sieve per model. Got a second one, while the first is open "
                    "or a call begun under it is at work in another thread. Close the first and "
                    "let its calls end, or use `compress`."
                )
            try:
                self._put_on()
            except BaseException:
                self.held.close()
                raise
            self.open, self.users = True, 1
        return self

    def _put_on(self) -> None:
        """Lay on the model what all calls share."""
        self.held.enter_context(remembered(self.model))
        self.held.enter_context(installed(self.model, self.plan))
        points = (Point(self.model, When.BEFORE), Point(self.model, When.FINALLY))
        self.held.enter_context(hooks.installed(points))
        mine = (self.generate, self.refuse_batch, self.expand, self.processors, self.criteria)
        for name, step in zip(_PATCHED, mine, strict=True):
            self.original[name] = getattr(self.model, name)
            hooks.mount(self.model).set(name, step)
            self.held.callback(hooks.mount(self.model).unset, name)
        for point, action in zip(points, (self.before_forward, self.after_forward), strict=True):
            hooks.stand(point, action)

    def __exit__(self, *_error: object) -> None:
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

    # -- generate

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` over shortened prompts, giving back the prompts as they were."""
        kwargs |= inspect.signature(self.original["generate"]).bind_partial(*args).arguments
        for name, told in (("inputs", "input_ids"), ("generation_config", "generation_config")):
            if (value := kwargs.pop(name, None)) is not None:
                kwargs[told] = value
        self.calls.sweep()
        with self._using() as is_open:
            if is_open:
                return self._generate(kwargs)
        with self.calls.at_work(Call(generating=True)):  # closed: keeps nothing here
            return self.original["generate"](**kwargs)

    def _generate(self, kwargs: dict[str, Any]) -> Any:
        refuse_paged(kwargs)
        require_cache(cache_of(kwargs))
        if self.plan.stages or self.plan.method.unmerges:
            refuse_inside(self.model, kwargs)
        with self.calls.apart(), torch.no_grad():  # as in `generate` itself
            done, stages = self._apply(kwargs)
        ready = now_ms(self.model.device)
        call = Call(done, stages, generating=True, given=kwargs)
        arguments = done.arguments
        if done.shortened:
            arguments |= lengths(self.model, kwargs, done)
        call.view = View(done.prompt_ids, done.prompt_length, self.calls.apart)
        for name, seen in (
            ("prefix_allowed_tokens_fn", call.view.constraint),
            ("streamer", call.view.streamer),
        ):
            if arguments.get(name) is not None:
                arguments[name] = seen(arguments[name])
        unshut(cache_of(kwargs))
        with self.calls.at_work(call):
            try:
                out = self.original["generate"](**arguments)
                call.answer = answer_of(self.model, call, out)
            finally:
                call.work.close()
                call.note(self.model, cache_of(kwargs), renumber=self.plan.renumber)
        spent = now_ms(self.model.device) - ready
        prefill = call.forwards[0] if call.forwards else 0.0
        self._record(call, prefill=prefill, decode=spent - prefill)
        return with_prompt(out, done)

    def _apply(self, inputs: Mapping[str, Any]) -> tuple[Compressed, Stages | Unmerged | None]:
        """Shorten the prompt, or get ready to shorten it inside the LLM."""
        if is_filled(cache_of(inputs)):
            return next_turn(self.model, self.plan, inputs), None
        return shorten(self.model, self.plan, inputs)

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
        """Rows of a call repeated by prompt (beams)."""
        expand = self.original["_expand_inputs_for_generation"]
        call = self.calls.top
        if call is None:
            return expand(
                expand_size=expand_size, is_encoder_decoder=is_encoder_decoder,
                input_ids=input_ids, **kwargs,
            )  # fmt: skip
        return call.expanded(expand, expand_size, is_encoder_decoder, input_ids, kwargs)

    def processors(self, *args: Any, **kwargs: Any) -> Any:
        """The logits processors of a call, the caller's own shown the caller's prompt."""
        made = self.original["_get_logits_processor"](*args, **kwargs)
        if (call := self.calls.top) is None or call.view is None:
            return made
        return call.view.shown(made, call.given.get("logits_processor"))

    def criteria(self, *args: Any, **kwargs: Any) -> Any:
        """The stopping criteria of a call, the caller's own shown the caller's prompt."""
        made = self.original["_get_stopping_criteria"](*args, **kwargs)
        if (call := self.calls.top) is None or call.view is None:
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
        self.calls.sweep()
        call, cache = self.calls.top, cache_of(bound)
        if call is not None and call.generating and call.owns(cache):
            call.begun, call.cache = True, call.cache if call.cache is not None else cache
            self._work(call)
            return None
        mine, alone = Call(), not self.calls.stack
        self.calls.stack.append(mine)
        if not self.open or (alone and in_plain_generate()):
            return None  # begun after the sieve was closed, or before it was opened
        if module is not self.model:
            raise UnsupportedError(
                "Expected the model the sieve was opened on. Got a copy of it, as DataParallel "
                "makes. Run one process per device, each with a sieve of its own."
            )
        mine.given, mine.cache = bound, cache
        mine.done, mine.stages = self._shorten_forward(bound, cache)
        self._work(mine)
        return None if mine.done is None else ((), mine.done.arguments)

    def _work(self, call: Call) -> None:
        """Begin a forward of a call."""
        if call.stages is not None:
            call.work.enter_context(call.stages.at_work())
        call.started = now_ms(self.model.device)

    def _shorten_forward(
        self, bound: dict[str, Any], cache: Any
    ) -> tuple[Compressed | None, Stages | Unmerged | None]:
        pictures = any(bound.get(key) is not None for key in PIXELS)
        if not pictures and not bound.get("mm_encoder_outputs"):
            if is_filled(cache):
                memory = memory_of(self.model, cache)
                if memory is not None:
                    read_by_hand(cache, memory, bound.get("input_ids"))
                if memory is None or not memory.less:
                    return None, None
                refuse_continuation(bound)
                unshut(cache)
                return None, memory.stages
            refuse_unsupported(self.model, bound)
            place_BS = places_of(self.model, bound["input_ids"])
            if bool(place_BS.any()):
                require_both(place_BS, pictures=False)
            return None, None
        refuse_filled(bound)
        require_inputs(bound)
        refuse_unsupported(self.model, bound)
        if bound.get("attention_mask") is None:
            bound["attention_mask"] = torch.ones_like(bound["input_ids"])
        with self.calls.apart():
            return self._apply(bound)

    def after_forward(self, _module: Any, _args: Any, output: Any) -> Any:
        """Note the time; a plain forward is recorded here, unless it failed."""
        call = self.calls.top
        if call is None:
            return None
        call.work.close()
        spent = now_ms(self.model.device) - call.started
        if call.generating:
            call.forwards.append(spent)
            return None
        self.calls.stack.pop()
        if call.done is None:
            shut(call.cache)
        elif output is not None:
            call.cache = cache_in(output)
            call.note(self.model, call.cache, renumber=self.plan.renumber)
            self._record(call, prefill=spent)
            if call.given.get("labels") is not None and not self.model.training:
                return beside_labels(output, call.done)
        return None

    def _record(self, call: Call, **ms: float) -> None:
        if call.done is None:
            return
        made = call.done.report.calls[0]
        if call.stages is not None:
            made = call.stages.call(made.ms)
        self.report.add(replace(made, ms={**made.ms, **ms}))
