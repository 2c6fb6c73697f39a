"""Progress of a long command: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType
from typing import Any

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
