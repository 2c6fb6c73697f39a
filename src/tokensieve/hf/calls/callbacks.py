"""What a caller hands to `generate` to be asked or told along the way sees the caller's prompt.

`generate` works on the shortened prompt. Logits processors, stopping criteria, streamers and
constraints of the caller's are shown ids with the prompt as it was, and nothing they run of the
model counts as part of the call.

E rows of all prompts (beams), T length of the shortened prompt, S of the prompt as given, n tokens
generated so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

Apart = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class View:
    """How the caller of a shortened prompt sees it.

    prompt_ids: (B, S) as given; length: T. apart: opened around what a callback does.
    """

    prompt_ids: Int[Tensor, "B S"]
    length: int
    apart: Apart

    def whole(self, ids: Int[Tensor, "E T_n"]) -> Int[Tensor, "E S_n"]:
        """Rows of ids with the prompt as it was, however often each prompt is repeated."""
        rows = self.rows(len(ids)).to(ids.device)
        return torch.cat([rows, ids[:, self.length :]], dim=1)

    def rows(self, count: int) -> Int[Tensor, "E S"]:
        """The prompts as given, each as often as `count` rows take."""
        return self.prompt_ids.repeat_interleave(count // len(self.prompt_ids), 0)

    @property
    def dropped(self) -> int:
        """S - T."""
        return int(self.prompt_ids.shape[1]) - self.length

    def shown(self, made: Any, given: Iterable[Any] | None) -> Any:
        """The processors or criteria `made` for a call, with the caller's own among them shown the
        whole prompt."""
        own = {id(one) for one in given or ()}
        return type(made)([_Shown(one, self) if id(one) in own else one for one in made])

    def criteria(self, made: Any, given: Iterable[Any] | None) -> Any:
        """As `shown`; a limit to the whole length is one to the shortened length."""
        own = {id(one) for one in given or ()}
        moved = [
            MaxLengthCriteria(max(1, one.max_length - self.dropped))
            if isinstance(one, MaxLengthCriteria) and id(one) in own
            else one
            for one in made
        ]
        return self.shown(type(made)(moved), given)

    def constraint(self, allowed: Callable[[int, Tensor], Any]) -> Callable[[int, Tensor], Any]:
        """`prefix_allowed_tokens_fn`, asked about the whole prompt."""

        def asked(prompt: int, ids: Tensor) -> Any:
            first = self.prompt_ids[prompt].to(ids.device)
            with self.apart():
                return allowed(prompt, torch.cat([first, ids[self.length :]]))

        return asked

    def streamer(self, given: Any) -> BaseStreamer:
        """A streamer that is first put the whole prompt."""
        return _Streamed(given, self)


class _Shown:
    """A logits processor or a stopping criterion of the caller's."""

    def __init__(self, inner: Any, view: View) -> None:
        self._inner, self._view = inner, view

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        with self._view.apart():
            return self._inner(self._view.whole(input_ids), scores)

    def __getattr__(self, name: str) -> Any:  # `generate` asks some for their tokens
        return getattr(self._inner, name)


class _Streamed(BaseStreamer):
    def __init__(self, inner: Any, view: View) -> None:
        self.inner, self.view, self.begun = inner, view, False

    def put(self, value: Tensor) -> None:
        if not self.begun:
            self.begun, value = True, self.view.rows(len(value)).to(value.device)
        with self.view.apart():
            self.inner.put(value)

    def end(self) -> None:
        with self.view.apart():
            self.inner.end()
