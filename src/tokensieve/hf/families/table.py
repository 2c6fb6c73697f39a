"""What differs between VLM families: one row each, and defaults that fit most.

n crops of a picture, L tokens of a crop, C encoder width, N rows of a picture in the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokensieve.errors import UnsupportedError
from tokensieve.hf.families.layout import (
    Packing,
    pack_anyres,
    pack_fused,
    pack_merges,
    pack_plain,
    pack_pooled,
    pack_with_cls,
    patches_of_cells,
)
from tokensieve.hf.families.refusals import why_none
from tokensieve.hf.families.windows import unwindow
from tokensieve.hf.runtime.arguments import require_head, require_model
from tokensieve.hf.runtime.once import once

Pack = Callable[[Any, Mapping[str, Any], Sequence[int]], list[Packing]]
Order = Callable[[Any, Mapping[str, Any], Tensor], Tensor]
Patches = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Family:
    """How one family of models feeds pictures to its LLM.

    pack: rows of each picture -> `Packing`.
    projector: path, from the base model, of the module whose input is the site "features".
    merged: that input holds one row per patch, and several neighbouring rows make one LLM token.
    order: puts rows taken at the projector, one per LLM token, in the LLM's order.
    split_runs: the encoder gives one item per prompt; its pictures are the placeholder runs.
    resizable: its encoder can be run on a picture of another size (site "pixels").
    stages: tokens can be dropped at a layer of its LLM (site "llm"); only what tests have shown.
    cells: a token is made of the patches of a square cell of its crop's grid.
    adjacent: patches of a token follow each other in the encoder, as with `merged`, though the
        projector gets one row per token.
    padded: its encoder pads pictures to the longest; of padding no token is made.
    patches: model -> (L, m) patches of a crop that make each token, where the family has code of
        its own for that.
    frames: rows of each video -> `Packing`, its frames the crops; None: no videos of their own.
    video_runs: the encoder gives one item per frame; videos are the placeholder runs.
    axes: of M-RoPE; position ids may have a row in front of them.
    recounts: its `generate` drops position ids and counts what is left.
    both_ways: every token of a prompt sees every other, so that no later turn can be added to it.
    """

    pack: Pack = pack_plain
    projector: str = "multi_modal_projector"
    merged: bool = False
    order: Order | None = None
    split_runs: bool = False
    resizable: bool = False
    stages: bool = False
    cells: bool = False
    adjacent: bool = False
    padded: bool = False
    patches: Patches | None = None
    frames: Pack | None = None
    video_runs: bool = False
    both_ways: bool = False
    axes: int = 3
    recounts: bool = False


FAMILIES: dict[str, Family] = {
    "llava": Family(resizable=True, stages=True),
    "llava_next": Family(pack=pack_anyres, resizable=True, stages=True),
    "llava_next_video": Family(pack=pack_anyres, resizable=True, stages=True, frames=pack_pooled),
    "llava_onevision": Family(
        pack=pack_anyres,
        resizable=True,
        stages=True,
        frames=partial(pack_pooled, newline=True),
    ),
    "video_llava": Family(stages=True, frames=pack_with_cls, video_runs=True),
    "video_llama_3": Family(
        pack=pack_merges, projector="projector", stages=True, frames=pack_merges
    ),
    "vipllava": Family(stages=True),
    "mistral3": Family(cells=True, stages=True),
    "internvl": Family(stages=True),
    "qwen2_vl": Family(
        projector="visual.merger", merged=True, resizable=True, stages=True, frames=pack_plain
    ),
    "qwen2_5_vl": Family(
        projector="visual.merger",
        merged=True,
        order=unwindow,
        resizable=True,
        stages=True,
        frames=pack_plain,
    ),
    "qwen3_vl": Family(projector="visual.merger", merged=True, stages=True, frames=pack_plain),
    "qwen3_vl_moe": Family(projector="visual.merger", merged=True, stages=True),
    "idefics3": Family(projector="connector", split_runs=True, cells=True, stages=True),
    "smolvlm": Family(projector="connector", split_runs=True, cells=True, stages=True),
    "gemma3": Family(cells=True, stages=True),
    "aya_vision": Family(cells=True, stages=True),
    "cohere2_vision": Family(cells=True, stages=True),
    "glm4v": Family(adjacent=True, stages=True),
    "qwen3_5": Family(projector="visual.merger", merged=True, stages=True),
    "lfm2_vl": Family(cells=True, padded=True, stages=True),
    "paligemma": Family(both_ways=True, stages=True),
    "idefics2": Family(projector="connector", split_runs=True, stages=True),
    "qwen2_5_omni_thinker": Family(
        projector="visual.merger", merged=True, order=unwindow, stages=True
    ),
    "glm46v": Family(stages=True),
    "glm4v_moe": Family(stages=True),
    "glm_ocr": Family(stages=True),
    "gemma4": Family(projector="embed_vision", stages=True),
    "got_ocr2": Family(stages=True),
    "lighton_ocr": Family(stages=True),
    "deepseek_vl": Family(projector="aligner", stages=True),
    "janus": Family(projector="aligner", stages=True),
    "ovis2": Family(projector="visual_embeddings_table", cells=True, stages=True),
    "ernie4_5_vl_moe": Family(stages=True),
    "paddleocr_vl": Family(stages=True),
    "hunyuan_vl": Family(axes=4, stages=True),
    "exaone4_5": Family(
        projector="visual.merger", merged=True, order=unwindow, recounts=True, stages=True
    ),
    "aria": Family(stages=True),
    "kimi_k25": Family(stages=True),
    "perception_lm": Family(stages=True),
    "fast_vlm": Family(stages=True),
    "molmo2": Family(stages=True),
    "minicpmv4_6": Family(stages=True),
    # its encoder must fill the grid that is fused: neither resized nor thinned out
    "fused_llava": Family(
        pack=pack_fused,
        projector="multi_modal_projector.spatial.mlp",
        stages=True,
        patches=patches_of_cells,
    ),
}


@once
def family_of(model: Any) -> Family:
    """The family of `model`: its row of the table, or the default, which has to prove itself.

    Raises `UnsupportedError` for a model that has no visual tokens in its prompt, and says why.
    """
    require_model(model)
    takes = inspect.signature(type(model).forward).parameters
    if (why := why_none(model, "mm_encoder_outputs" in takes)) is not None:
        raise UnsupportedError(
            "Expected a decoder-only vision-language model with image placeholders in its prompt "
            f"(LLaVA, Qwen-VL, ...). Got {type(model).__name__}, {why}"
        )
    if "mm_encoder_outputs" not in takes:
        raise UnsupportedError(
            "Expected a model whose forward takes `mm_encoder_outputs`, as in Transformers. "
            f"Got {type(model).__name__}. If it is around another model, pass that one."
        )
    require_head(model)
    return FAMILIES.get(model.config.model_type, Family())


def is_listed(model: Any) -> bool:
    """Whether the table has a row for the family of `model`, which tests have shown to be exact."""
    return model.config.model_type in FAMILIES


def placeholders_of(model: Any) -> dict[str, int]:
    """Token id of the rows of each kind in a prompt: pictures, and videos where the family has
    them."""
    config = model.config
    found = {"image": int(config.image_token_id)}
    video = getattr(config, "video_token_id", None)
    family = FAMILIES.get(getattr(config, "model_type", ""), Family())
    if family.frames is not None and video is not None:
        found["video"] = int(video)
    return found


def places_of(model: Any, ids_BS: Tensor) -> Bool[Tensor, "B S"]:
    """Where the rows of pictures and videos stand in prompts."""
    place_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
    for token in placeholders_of(model).values():
        place_BS = place_BS | (ids_BS == token)
    return place_BS


def decoder_of(model: Any) -> Any:
    """The LLM's stack of decoder layers: a module with `layers`.

    Raises `UnsupportedError` for a family whose layers have not been shown to bear a cut.
    """
    family, base = family_of(model), model.base_model
    parts = (getattr(base, name, None) for name in ("language_model", "text_model"))
    decoder: Any = next((part for part in parts if part is not None), None)
    if not family.stages or not hasattr(decoder, "layers"):
        known = ", ".join(name for name, row in FAMILIES.items() if row.stages)
        raise UnsupportedError(
            f"Expected a family whose LLM can be cut at a layer ({known}). Got "
            f"'{model.config.model_type}'. Use a method that acts before the LLM."
        )
    if shared := int(getattr(decoder.config, "num_kv_shared_layers", None) or 0):
        raise UnsupportedError(
            "Expected an LLM whose layers all have keys of their own, to cut it at one. Got "
            f"'{model.config.model_type}', whose last {shared} layers read those of layers before "
            "them. Use a method that acts before the LLM."
        )
    return decoder


def first_cut(model: Any) -> int:
    """The first layer of the LLM before which tokens can be dropped: encoders with deepstack add
    features of theirs to the visual tokens behind each of the layers before that, row by row."""
    vision = getattr(model.config, "vision_config", None)
    return max(1, len(getattr(vision, "deepstack_visual_indexes", None) or ()))


def projector_of(model: Any, family: Family) -> torch.nn.Module | None:
    """The module whose input is the site "features", or None if there is none of that name."""
    module: Any = model.base_model
    for name in family.projector.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, torch.nn.Module) else None


def crop_features(
    model: Any,
    family: Family,
    inputs: Mapping[str, Any],
    tapped: Sequence[Tensor],
    packings: Sequence[Packing],
) -> tuple[Tensor, ...] | None:
    """The projector's input as (n, L, C) per picture; None if it is not one row per token."""
    if not tapped or len({part.shape[-1] for part in tapped}) > 1:
        return None
    rows = torch.cat([part.flatten(0, -2) for part in tapped])
    total = sum(p.crops * p.length for p in packings)
    if family.merged:
        if len(rows) % total:
            return None
        rows = rows.reshape(total, -1)
    if len(rows) != total:
        return None
    if family.order is not None:
        rows = family.order(model, inputs, rows)
    parts = torch.split(rows, [p.crops * p.length for p in packings])
    return tuple(part.view(p.crops, p.length, -1) for part, p in zip(parts, packings, strict=True))


def project(model: Any, family: Family, features_nLC: Tensor) -> Tensor:
    """Features put through the model's own projector, token by token: (n, L, D).

    Raises `UnsupportedError` where the projector does not map one feature to one token.
    """
    module = projector_of(model, family)
    n, L, C = features_nLC.shape
    if module is not None:
        source = features_nLC.reshape(n * L, C)
        if family.merged:
            source = source.reshape(-1, C // model.config.vision_config.spatial_merge_size**2)
            out = module(source)
        else:
            out = module(features_nLC)
        if out.numel() and out.flatten(0, -2).shape[0] == n * L:
            return torch.as_tensor(out).reshape(n, L, -1)
    raise UnsupportedError(
        f"Expected a projector that maps one feature to one token. Got {type(model).__name__}'s, "
        "which does not. Use a method that keeps features as they are, or acts on 'embeds'."
    )
