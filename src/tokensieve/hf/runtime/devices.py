"""Where weights and tensors are: a model may be offloaded, or its layers shared out over devices.

accelerate, which does both, puts each module's inputs and weights on its device right before it is
run. Hence a hook sees a layer's inputs on whatever device they come from; what goes together with
a tensor is put on that tensor's device, never on "the model's". accelerate's own bookkeeping is not
made for several threads: an offloaded model answers one call at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokensieve.errors import UnsupportedError

T = TypeVar("T")


@contextmanager
def at_hand(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, the modules' own weights may be read, offloaded ones too.

    Raises `UnsupportedError` for weights that were never loaded.
    """
    with ExitStack() as stack:
        for module in modules:
            if not _absent(module):
                continue
            stack.enter_context(_loaded(module))
            if _absent(module):
                raise UnsupportedError(
                    f"Expected weights. Got a {type(module).__name__} on the meta device, which no "
                    "offloading of accelerate's will fill. Load the model with `from_pretrained`."
                )
        yield


def _absent(module: nn.Module) -> bool:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(tensor.is_meta for tensor in own)


@contextmanager
def _loaded(module: nn.Module) -> Iterator[None]:
    if getattr(module, "_hf_hook", None) is None:
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def input_device(model: Any) -> torch.device:
    """The device to put a prompt on. An offloaded model fetches it from the CPU."""
    device: torch.device = model.device
    return torch.device("cpu") if device.type == "meta" else device


def moved(value: T, device: torch.device) -> T:
    """A dataclass with its tensors on `device`; the very same where they are there."""
    kept: dict[str, Any] = {}
    for each in fields(value):  # type: ignore[arg-type]
        held = getattr(value, each.name)
        if isinstance(held, Tensor) and held.device != device:
            kept[each.name] = held.to(device)
    return replace(value, **kept) if kept else value  # type: ignore[type-var]
