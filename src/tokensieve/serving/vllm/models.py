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

from tokensieve.data.extras import need
from tokensieve.serving.vllm import OWN
from tokensieve.serving.vllm.processor import (
    KEEP,
    pictures_only,
    processor_factory,
    setting_of,
    sieve_of,
)

MULTIMODAL_REGISTRY: Any = need(
    "vllm.multimodal", "vllm", "whose models are served"
).MULTIMODAL_REGISTRY


def __getattr__(name: str) -> type[nn.Module]:
    architecture = name.partition("@")[0]
    if architecture not in OWN:
        raise AttributeError(name)
    return guarded(architecture)


@lru_cache
def guarded(architecture: str) -> type[nn.Module]:
    """A subclass of vLLM's class of that architecture."""
    module, name = OWN[architecture].split(":")
    base: Any = getattr(import_module(module), name)
    inside = {"__module__": __name__, "__qualname__": name, "own": base}
    made: Any = type(name, (Sieved, base), inside | {"architecture": architecture})
    factories = getattr(base, "_processor_factory", None)
    if factories is None:  # no pictures
        return made  # type: ignore[no-any-return]
    put = MULTIMODAL_REGISTRY.register_processor(
        processor_factory(factories.processor, architecture),
        info=pictures_only(factories.info),
        dummy_inputs=factories.dummy_inputs,
    )
    return put(made)  # type: ignore[no-any-return]


class Sieved:
    """In front of vLLM's class `own`, which it gives where the config asks for nothing."""

    own: Any
    architecture: str
    sieve: Any = None  # an `ItemSieve`, or nothing is asked for
    model: Any  # of some, what holds the projector

    def __new__(cls, *, vllm_config: Any, prefix: str = "") -> Any:
        """A model whose pictures have fewer rows, or vLLM's own.

        A subclass is what vLLM's adapters make (for embeddings, say): it stays what it is.
        """
        itself = "own" in cls.__dict__
        if itself and setting_of(vllm_config.model_config.hf_config) is None:
            return cls.own(vllm_config=vllm_config, prefix=prefix)
        return super().__new__(cls)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        """Raises what `sieve_of` raises, before weights are read."""
        sieve = sieve_of(self.architecture, vllm_config.model_config.hf_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        if sieve is not None:
            self.sieve = sieve
            self.sieve.use_projector(self.projector)

    @property
    def projector(self) -> nn.Module:
        """vLLM's module by the name that Transformers has for it."""
        first, *_ = path = self.sieve.family.projector.split(".")
        module: Any = self if hasattr(self, first) else self.model
        for name in path:
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
        if self.sieve is None:
            return self.own.embed_multimodal(self, **inputs)  # type: ignore[no-any-return]
        with self.tapped() as seen:
            rows = self.own.embed_multimodal(self, **inputs)
        if keeps is None:
            return rows  # type: ignore[no-any-return]
        asked = [int(keep) if keep > 1 else float(keep) for keep in keeps.flatten().tolist()]
        left: list[Tensor] = self.sieve.reduce(inputs, list(rows), seen, asked)
        return left
