"""Transformers' Auto classes, told of the fused LLaVA."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from tokensieve.hf.fused.config import FusedLlavaConfig
from tokensieve.hf.fused.model import FusedLlavaForConditionalGeneration, FusedLlavaModel
from tokensieve.hf.fused.processor import FusedLlavaProcessor


def register() -> None:
    """Let Transformers' Auto classes load it: config, processor, model, and the model that answers.

    Call it once in every process that uses them, as often as you like; `load_model` does. Not done
    at import: importing a package should change nothing of another.
    """
    # untyped in Transformers
    configs: Any = AutoConfig
    processors: Any = AutoProcessor
    models: Any = AutoModel
    configs.register(FusedLlavaConfig.model_type, FusedLlavaConfig, exist_ok=True)
    processors.register(FusedLlavaConfig, FusedLlavaProcessor, exist_ok=True)
    models.register(FusedLlavaConfig, FusedLlavaModel, exist_ok=True)
    readers: list[Any] = [AutoModelForImageTextToText, AutoModelForMultimodalLM]
    for reader in readers:
        reader.register(FusedLlavaConfig, FusedLlavaForConditionalGeneration, exist_ok=True)
