"""What is evaluated: a model by the name suites use, methods bound to it, and fingerprints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokensieve.evaluate.records import file_hash
from tokensieve.evaluate.tasks import Item
from tokensieve.hf.families.fingerprint import encoder_info, llm_info, state_hash
from tokensieve.hf.load import load_model
from tokensieve.hf.models.loaded import Loaded
from tokensieve.methods.base import Method
from tokensieve.methods.registry import get_method
from tokensieve.types import Site

Told = Callable[[Sequence[Item], int], Method]  # a method of what a batch shows, and a seed


@dataclass
class Subject:
    """A model ready to be scored; the methods bound to its encoder are kept.

    beside: by name, methods beside those of the registry.
    """

    model: Any
    processor: Any
    beside: Mapping[str, Told] = field(default_factory=dict)
    _bound: dict[str, Method] = field(default_factory=dict)
    _fingerprint: str = ""

    @classmethod
    def of(cls, loaded: Loaded, beside: Mapping[str, Told] | None = None) -> Subject:
        """In float32: the arithmetic of every record."""
        return cls(loaded.model.float(), loaded.processor, beside or {})

    def bound(self, name: str, options: Mapping[str, Any], layer: int | None = None) -> Method:
        """The method `name` with `options`, bound to this encoder, or to the LLM where it reads
        hidden states that enter `layer`; made once. Inside the LLM without a `layer` it is left to
        the sieve, which binds it at each of its own layers."""
        key = json.dumps([name, dict(options), layer], sort_keys=True)
        if key not in self._bound:
            method = get_method(name, **options)
            if method.site is Site.LLM:
                inside = None if layer is None else llm_info(self.model, layer)
                self._bound[key] = method if inside is None else method.bind(inside)
            else:
                self._bound[key] = method.bind(encoder_info(self.model))
        return self._bound[key]

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights in memory."""
        if not self._fingerprint:
            self._fingerprint = state_hash(self.model)
        return self._fingerprint

    def fingerprints(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Hashes of the model and of an option `weights` that is a file or folder."""
        out = {"model": self.fingerprint}
        weights = options.get("weights")
        if isinstance(weights, str) and Path(weights).exists():
            out["method"] = file_hash(Path(weights))
        return out


def load_subject(name: str, beside: Mapping[str, Told] | None = None) -> Subject:
    """The model called `name`, as `tokensieve ask` would load it, in float32."""
    return Subject.of(load_model(name), beside)
