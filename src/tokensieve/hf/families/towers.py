"""The layers of a model's vision encoder and of its LLM, and the attention in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.errors import UnsupportedError
from tokensieve.hf.runtime.once import once

_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder")
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


@dataclass(frozen=True)
class PatchRows:
    """How a kind of tower hands patches to its layers, where it can be run on fewer of them.

    packed: patches of all pictures in one row, one picture (or window) after another; else each
        crop is a row of a batch, behind CLS where there is one.
    windowed: a layer may attend in other windows than the one before it.
    mergers: the tower's modules that make tokens of whole groups of patches.
    """

    packed: bool = True
    windowed: bool = False
    mergers: tuple[str, ...] = ()


PATCH_ROWS = {
    "qwen2_vl_vision": PatchRows(mergers=("merger",)),
    "qwen2_5_vl_vision": PatchRows(windowed=True, mergers=("merger",)),
    "qwen3_vl_vision": PatchRows(mergers=("merger", "deepstack_merger_list")),
    "pixtral": PatchRows(),
    "clip_vision_model": PatchRows(packed=False),
    "siglip_vision_model": PatchRows(packed=False),
    "internvl_vision": PatchRows(packed=False),
    "idefics3_vision": PatchRows(packed=False),
    "smolvlm_vision": PatchRows(packed=False),
    "qwen3_vl_moe_vision": PatchRows(mergers=("merger", "deepstack_merger_list")),
    "qwen3_5_vision": PatchRows(mergers=("merger",)),
    "glm4v_vision": PatchRows(),
    "siglip2_vision_model": PatchRows(packed=False),
    "qwen2_5_omni_vision_encoder": PatchRows(windowed=True, mergers=("merger",)),
    "glm4v_moe_vision": PatchRows(),
    "glm_ocr_vision": PatchRows(),
    "ernie4_5_vl_moe_vision": PatchRows(),
    "janus_vision_model": PatchRows(packed=False),
    "kimi_k25_vision": PatchRows(),
    "paddleocr_vl_vision": PatchRows(),
    "ovis2_vision": PatchRows(packed=False),
    "exaone4_5_vision": PatchRows(windowed=True, mergers=("merger",)),
    "video_llama_3_vision": PatchRows(),
    "dinov2": PatchRows(packed=False),
}


def patch_rows(model: Any) -> PatchRows | None:
    """How the tower of `model` hands on patches; None where it is not known to bear fewer."""
    vision = getattr(model.config, "vision_config", None)
    return PATCH_ROWS.get(getattr(vision, "model_type", ""))


def mergers_of(model: Any) -> list[nn.Module]:
    """The modules of its tower that make tokens of whole groups of patches."""
    tower, rows = tower_of(model), patch_rows(model)
    found = [getattr(tower, name, None) for name in (rows.mergers if rows is not None else ())]
    lists = [[*one] if isinstance(one, nn.ModuleList) else [one] for one in found]
    return [module for part in lists for module in part if isinstance(module, nn.Module)]
