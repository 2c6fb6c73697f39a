"""The layers of a model's vision encoder and of its LLM, and the attention in each."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokensieve.errors import UnsupportedError
from tokensieve.hf.runtime.once import once

_TOWERS = ("vision_tower", "visual", "vision_model")
_ATTENTION = ("self_attn", "attention", "attn")
_CLS = ("class_embedding", "cls_token")  # parameters of the embeddings of towers that have one


def tower_of(model: Any) -> nn.Module:
    """The vision encoder of `model`. Raises `UnsupportedError` where none is found."""
    for name in _TOWERS:
        if isinstance(found := getattr(model.base_model, name, None), nn.Module):
            return found
    raise UnsupportedError(
        f"Expected a model with a vision encoder ({', '.join(_TOWERS)}). Got "
        f"{type(model).__name__}. Use a method that acts on 'embeds'."
    )


@once
def encoder_layers(model: Any) -> nn.ModuleList:
    """The vision encoder's transformer layers, first to last. Raises `UnsupportedError`."""
    require_uncompiled(tower := tower_of(model))
    for module in tower.modules():
        if isinstance(module, nn.ModuleList) and len(module) and attention_in(module[0]):
            return module
    raise UnsupportedError(
        f"Expected a vision encoder made of transformer layers. Got {type(model).__name__}'s. "
        "Use a method that acts on 'embeds'."
    )


def require_uncompiled(part: nn.Module, around: nn.Module | None = None) -> None:
    """Raise `UnsupportedError` where hooks inside `part` of `around` might be passed by: compiled
    code does not look again which there are."""
    outer = [] if around is None else [("", around)]
    for name, module in (*outer, *part.named_modules()):
        if "_orig_mod" in module._modules:
            raise UnsupportedError(
                f"Expected modules that are not compiled, for what acts inside them. Got "
                f"torch.compile of {type(module._modules['_orig_mod']).__name__}"
                f"{' at ' + name if name else ''}. Put its `_orig_mod` back in its place, or use a "
                "method that acts elsewhere."
            )


def attention_in(layer: nn.Module) -> nn.Module | None:
    """The attention module of a transformer layer; None if there is none of a known name."""
    found = (getattr(layer, name, None) for name in _ATTENTION)
    return next((module for module in found if isinstance(module, nn.Module)), None)


@once
def has_cls(model: Any) -> bool:
    """Whether the encoder puts a CLS token before its patches."""
    names = (name.rpartition(".")[2] for name, _ in tower_of(model).named_parameters())
    return any(name in _CLS for name in names)
