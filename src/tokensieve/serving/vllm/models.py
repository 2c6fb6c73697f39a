"""vLLM's model classes, whose pictures leave the encoder with fewer rows.

Each is made when vLLM asks for it by name. N rows of a picture, D LLM width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from vllm.multimodal import MULTIMODAL_REGISTRY

from tokensieve.serving.items import ItemSieve
from tokensieve.serving.vllm import FAMILIES
from tokensieve.serving.vllm.processor import KEEP, processor_factory, setting_of


def __getattr__(name: str) -> type[nn.Module]:
    if name not in FAMILIES:
        raise AttributeError(name)
    return sieved(name)


@lru_cache
def sieved(architecture: str) -> type[nn.Module]:
    """A subclass of vLLM's class of that architecture."""
    own = import_module(f"vllm.model_executor.models.{FAMILIES[architecture]}")
    base: Any = getattr(own, architecture)
    inside = {"__module__": __name__, "__qualname__": architecture, "own": base}
    made = type(architecture, (Sieved, base), inside)
    factories = base._processor_factory
    put = MULTIMODAL_REGISTRY.register_processor(
        processor_factory(factories.processor),
        info=factories.info,
        dummy_inputs=factories.dummy_inputs,
    )
    return put(made)  # type: ignore[no-any-return]


class Sieved:
    """In front of vLLM's class `own`: its rows, less those that the setting drops."""

    own: Any

    def __new__(cls, *_args: Any, vllm_config: Any, prefix: str = "") -> Any:
        """vLLM's own model where the config asks for nothing."""
        if setting_of(vllm_config.model_config.hf_config) is None:
            return cls.own(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        config = vllm_config.model_config.hf_config
        setting = setting_of(config)
        if setting is None:  # `__new__` has seen to that
            return
        self.sieve = ItemSieve(config, setting, "renumber")
        self.sieve.use_projector(self.projector)

    @property
    def projector(self) -> nn.Module:
        """vLLM's module by the name that Transformers has for it."""
        module: Any = self
        for name in self.sieve.family.projector.split("."):
            module = getattr(module, name)
        return module  # type: ignore[no-any-return]

    @contextmanager
    def tapped(self) -> Iterator[list[Tensor]]:
        """What the projector is given while this is open."""
        seen: list[Tensor] = []
        handle = self.projector.register_forward_pre_hook(
            lambda _module, args: seen.append(args[0])
        )
        try:
            yield seen
        finally:
            handle.remove()

    def embed_multimodal(self, **inputs: Any) -> Sequence[Tensor]:
        """(k, D) rows that stay of each picture."""
        keeps = inputs.pop(KEEP, None)
        with self.tapped() as seen:
            rows = self.own.embed_multimodal(self, **inputs)
        if keeps is None:
            return rows  # type: ignore[no-any-return]
        asked = [int(keep) if keep > 1 else float(keep) for keep in keeps.flatten().tolist()]
        return self.sieve.reduce(inputs, list(rows), seen, asked)
