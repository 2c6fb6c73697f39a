"""A long command: a bar on a terminal, a line now and then elsewhere, and how it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any

from tokensieve.errors import TokensieveError

EVERY = 10.0  # seconds between two lines where there is no terminal


class Progress:
    """Call it with (done, total) inside a `with` block; rate and time left are said on stderr."""

    def __init__(self, what: str = "pictures") -> None:
        self._what, self._start, self._said, self._first = what, perf_counter(), 0.0, True
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + self._what),
                BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        now = perf_counter()
        if self._first:  # what came before, such as loading a model, is no part of the rate
            self._start, self._said, self._first = now, now, False
            self._from = done
        rate = (done - self._from) / (now - self._start) if now > self._start else 0.0
        told = f"{rate:.1f}/s" if rate else "-/s"
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=total, rate=told)
            self._bar.update(self._task, completed=done, rate=told)
        elif now - self._said >= EVERY or done == total:
            self._said = now
            left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
            sys.stderr.write(f"{done:,} of {total:,} {self._what}, {told}{left}\n")
            sys.stderr.flush()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. at: how far the work is, if that is known."""

    def __init__(self, at: str = "") -> None:
        super().__init__(at)
        self.at = at


class _Signals:
    """What was asked for, and whether it waits for the end of a step."""

    number, waits, process = 0, False, 0

    def __call__(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # a worker that was forked off: Ctrl-C reaches it, too
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        first, self.number = not self.number, number
        if not (first and self.waits):
            raise Stopped


_signals = _Signals()


@contextmanager
def resumable(unit: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block in one line, with exit code 130 or 143.

    unit: what work is saved by, such as "shard": what is half done of it is dropped. Raises
    `SystemExit`.
    """
    ours = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)} if ours else {}
    _signals.number, _signals.waits, _signals.process = 0, False, os.getpid()
    try:
        for number, known in before.items():
            if known not in (signal.SIG_IGN, None):  # as under nohup; not Python's
                signal.signal(number, _signals)
        yield
    except (KeyboardInterrupt, RuntimeError) as error:
        if not (_signals.number or isinstance(error, KeyboardInterrupt)):
            raise  # else: what it broke off, such as a loader's workers that were stopped, too
        at = getattr(error, "at", "") or f"the last whole {unit}"
        asked = _signals.number or signal.SIGINT
        name = "Ctrl-C" if asked == signal.SIGINT else "SIGTERM"
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"tokensieve: stopped by {name}; the same command goes on from {at}\n")
        raise SystemExit(128 + asked) from None
    finally:
        _signals.number = 0
        for number, known in before.items():
            if known is not None:
                signal.signal(number, known)


@contextmanager
def whole_steps(possible: bool = True) -> Iterator[Callable[[], bool]]:
    """Inside, the first signal waits; the function says whether one did, at the end of a step.

    possible: False where it may not wait, as where other processes would go on.
    """
    _signals.waits, before = possible, _signals.waits
    try:
        yield lambda: _signals.waits and bool(_signals.number)
    finally:
        _signals.waits = before


def run_to_the_end(work: Callable[[], object], unit: str) -> int:
    """A command's exit code: of an error its line is said, of a signal that it can go on."""
    try:
        with resumable(unit):
            work()
    except TokensieveError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0
