"""What loading a model gives, and what it says where it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError

from tokensieve.errors import UnsupportedError


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, and the processor that feeds it."""

    name: str
    model: Any
    processor: Any


def hush() -> None:
    """Keep progress bars, advice and retries of Transformers and the hub out of what is printed."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    quiet: Any = logging  # untyped, as is the hub's
    retries: Any = hub
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    retries.set_verbosity_error()


def code_refused(name: str, error: Exception) -> UnsupportedError | None:
    """The refusal, if `error` is Transformers' asking to run code that comes with `name`."""
    if "trust_remote_code" not in str(error):
        return None
    return UnsupportedError(
        f"Expected files that Transformers' own classes read. Got '{name}', which brings code of "
        "its own; tokensieve never runs it. Use a checkpoint converted to those classes, often "
        "named '-hf'."
    )


def named(error: Exception) -> str:
    """The first line, after the kind of an error whose words do not stand alone."""
    spoken = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
    return first_line(error) if spoken else f"{type(error).__name__}: {first_line(error)}."


def first_line(error: Exception) -> str:
    """The first line of a message that may be a page long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
