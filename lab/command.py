"""What every command of the lab shares: one thread, and errors and Ctrl-C said in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, TypeVar

import torch

from tokensieve.data.progress import run_to_the_end
from tokensieve.evaluate.run import parse_shard

T = TypeVar("T")


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options given, after PyTorch was held to --threads threads: one, where there is no such
    option, since two commands on two cores beat one command on both."""
    options = parser.parse_args(arguments)
    torch.set_num_threads(getattr(options, "threads", 1))
    return options


def share(items: Iterable[T], shard: str) -> list[T]:
    """What is this process's part, "i/n": every n-th, from the i-th on.

    Raises `ConfigError` unless 0 <= i < n.
    """
    first, every = parse_shard(shard)
    return list(items)[first::every]


def run(main: Callable[[], object], unit: str = "record") -> NoReturn:
    """Run a command and exit with its code; `unit` is what it saves its work by."""
    raise SystemExit(run_to_the_end(main, unit))
