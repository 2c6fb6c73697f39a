"""Shape checks under pytest, where a signature names shapes and nowhere else."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import jaxtyping

SHAPE = re.compile(r"\b(Bool|Float|Int|UInt8)\[")


def names_shapes(fn: object) -> bool:
    """Whether a function's annotations, or a dataclass's fields, hold a shape such as "B L C"."""
    if inspect.isclass(fn):
        told = (
            [field.type for field in dataclasses.fields(fn)] if dataclasses.is_dataclass(fn) else []
        )
    else:
        for part in ("fget", "__func__"):  # of properties, and of class and static methods
            fn = getattr(fn, part, fn)
        told = [*getattr(fn, "__annotations__", {}).values()]
    return any(SHAPE.search(str(annotation)) for annotation in told)


def check_shapes(package: str) -> None:
    """Have every signature with shapes checked in modules of `package` imported from now on.

    jaxtyping's hook would wrap every function there is: twice the time of a call, and half a minute
    of imports. Types without shapes are for mypy.
    """
    checked = jaxtyping.jaxtyped

    def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
        check = checked(typechecker=typechecker)
        return lambda fn: check(fn) if names_shapes(fn) else fn

    jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]
    jaxtyping.install_import_hook(package, "beartype.beartype")
