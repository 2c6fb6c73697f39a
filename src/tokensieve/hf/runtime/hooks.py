"""What is put on modules for a while: hooks that act only for the thread that asked.

A hook lies on a module as long as somebody needs it. What it does is looked up in the thread that
runs the module, so that calls in several threads share a model without sharing anything of a call.
A module with hooks is copied and pickled as if it had none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import nn

Action = Callable[..., Any]
_MISSING = object()
_LOCK = threading.RLock()
_HERE = threading.local()
_MOUNTS: dict[int, _Mount] = {}


class When(StrEnum):
    """When a hook acts, and what it is called with.

    before: `(module, args, kwargs)`; gives None or `(args, kwargs)`. after: `(module, args,
    output)`, ahead of others' hooks; gives None or an output. finally: as after, failed runs too.
    """

    BEFORE = "before"
    AFTER = "after"
    FINALLY = "finally"


@dataclass(frozen=True)
class Point:
    """A place to act at; two are one if they are of the same module."""

    module: nn.Module = field(hash=False, compare=False)
    when: When
    key: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", id(self.module))


Actions = Mapping[Point, Action]


@contextmanager
def installed(points: Iterable[Point]) -> Iterator[None]:
    """Keep hooks on modules, so that calls need not put them on and take them off."""
    points = list(points)
    with _LOCK:
        for point in points:
            mount(point.module).put(point)
    try:
        yield
    finally:
        with _LOCK:
            for point in points:
                mount(point.module).take(point)


@contextmanager
def acting(actions: Actions) -> Iterator[None]:
    """While open, what this thread runs is acted on."""
    with installed(actions):
        frame = push(actions)
        try:
            yield
        finally:
            pop(frame)


@contextmanager
def apart() -> Iterator[None]:
    """While open, nothing that is at work in this thread acts: what runs is not part of it."""
    frame = push(None)
    try:
        yield
    finally:
        pop(frame)


def push(actions: Actions | None) -> object:
    """Begin to act in this thread, on hooks that are `installed`; `pop` takes what this gives."""
    frames = _frames()
    frame = [actions]
    frames.append(frame)
    return frame


def pop(frame: object) -> None:
    """Stop acting, and forget what was begun after it and never ended."""
    frames = _frames()
    for place in range(len(frames) - 1, -1, -1):
        if frames[place] is frame:
            del frames[place:]
            return


def _frames() -> list[list[Actions | None]]:
    try:
        return _HERE.frames  # type: ignore[no-any-return]
    except AttributeError:
        _HERE.frames = []
        return _HERE.frames  # type: ignore[no-any-return]


def _actions(point: Point) -> list[Action]:
    """What this thread does at a point, outermost first."""
    found: list[Action] = []
    for (actions,) in reversed(_frames()):
        if actions is None:
            break
        if (action := actions.get(point)) is not None:
            found.append(action)
    return found[::-1]


class _Hook:
    """What lies on a module at one point. standing: what it does in every thread, first."""

    def __init__(self, point: Point) -> None:
        self.point, self.count = point, 0
        self.standing: Action | None = None
        module = point.module
        if point.when is When.BEFORE:
            self.handle = module.register_forward_pre_hook(self.before, with_kwargs=True)
        else:
            always = point.when is When.FINALLY
            self.handle = module.register_forward_hook(self.after, prepend=True, always_call=always)

    def actions(self) -> list[Action]:
        found = _actions(self.point)
        return found if self.standing is None else [self.standing, *found]

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        changed = None
        for action in self.actions():
            if (out := action(module, args, kwargs)) is not None:
                args, kwargs = changed = out
        return changed

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        changed = None
        for action in self.actions():
            if (out := action(module, args, output)) is not None:
                output = changed = out
        return changed


class _Mount:
    """Everything that is on one module, and what was there before."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.hooks: dict[When, _Hook] = {}
        self.attributes: dict[str, Any] = {}  # as they were
        module.__dict__["__reduce_ex__"] = self.reduce

    def put(self, point: Point) -> None:
        hook = self.hooks.get(point.when)
        if hook is None:
            hook = self.hooks[point.when] = _Hook(point)
        hook.count += 1

    def take(self, point: Point) -> None:
        hook = self.hooks[point.when]
        hook.count -= 1
        if hook.count == 0:
            hook.handle.remove()
            del self.hooks[point.when]
        self.leave()

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the module until it is `unset`."""
        self.attributes.setdefault(name, self.module.__dict__.get(name, _MISSING))
        self.module.__dict__[name] = value

    def unset(self, name: str) -> None:
        _restore(self.module.__dict__, name, self.attributes.pop(name))
        self.leave()

    def leave(self) -> None:
        """Go where nothing is left to hold."""
        if not self.hooks and not self.attributes:
            self.module.__dict__.pop("__reduce_ex__", None)
            _MOUNTS.pop(id(self.module), None)

    def reduce(self, protocol: int) -> tuple[Any, ...]:
        """How `copy` and `pickle` see the module: without anything of ours."""
        parts: Any = type(self.module).__reduce_ex__(self.module, protocol)
        kind, made, state, *rest = parts
        return (kind, made, self.plain(state), *rest)

    def plain(self, state: dict[str, Any]) -> dict[str, Any]:
        state = {name: value for name, value in state.items() if name != "__reduce_ex__"}
        with _LOCK:
            for name, before in self.attributes.items():
                _restore(state, name, before)
            ours = {hook.handle.id for hook in self.hooks.values()}
        for name, value in state.items():
            if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
                state[name] = type(value)((k, v) for k, v in value.items() if k not in ours)
        return state


def _restore(attributes: dict[str, Any], name: str, before: Any) -> None:
    if before is _MISSING:
        attributes.pop(name, None)
    else:
        attributes[name] = before


def mount(module: nn.Module) -> _Mount:
    """What is on a module; hold `locked()` while changing it."""
    found = _MOUNTS.get(id(module))
    if found is None:
        found = _MOUNTS[id(module)] = _Mount(module)
    return found


def is_mounted(module: nn.Module, name: str) -> bool:
    """Whether the attribute `name` of a module is set by us at present."""
    found = _MOUNTS.get(id(module))
    return found is not None and name in found.attributes


def stand(point: Point, action: Action | None) -> None:
    """Act at an `installed` point in every thread; None: no longer."""
    with _LOCK:
        mount(point.module).hooks[point.when].standing = action


def locked() -> AbstractContextManager[Any]:
    """The lock of all that is put on modules."""
    return _LOCK
