"""Optional packages, imported when something needs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokensieve.errors import MissingPackageError


def need(module: str, extra: str, purpose: str) -> Any:
    """The module of that name. Raises `MissingPackageError` that names tokensieve's extra."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"Expected the package {package}, {purpose}. Got: {error}. "
            f"Install it with: pip install 'tokensieve[{extra}]'."
        ) from error
