"""The fingerprint of a model's vision encoder, which trained methods are bound to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from tokensieve.hf.families import decoder_of, family_of
from tokensieve.nn.fusion import FusionConfig, topmost
from tokensieve.types import EncoderInfo, Site

_FIXED_GRID = ("clip_vision_model", "siglip_vision_model", "internvl_vision")


def encoder_info(model: Any) -> EncoderInfo:
    """What the site "features" of `model` looks like; `.at_embeds()` says it of the site "embeds".

    width is that of one row of features: where neighbouring patches are merged into one LLM token,
    the patches' widths together. Raises `UnsupportedError` for a model without visual tokens.
    """
    family, config = family_of(model), model.config
    if (vision := getattr(config, "vision_config", None)) is None:
        return EncoderInfo(config.model_type, width=0, layer=-1, depth=0, heads=0, ffn=0)
    if (fusion := getattr(config, "fusion", None)) is not None:
        return _fused(config, vision, fusion)
    layer = _first(config, "vision_feature_layer", "vision_feature_layers", default=-1)
    several = len(layer) if isinstance(layer, list | tuple) else 1
    shuffle = round(1 / getattr(config, "downsample_ratio", 1.0))
    merge = vision.spatial_merge_size if family.merged else shuffle
    width = int(_first(vision, "embed_dim", "hidden_size", default=0))
    grid = None
    if vision.model_type in _FIXED_GRID:
        side = _scalar(vision.image_size) // _scalar(vision.patch_size) // merge
        grid = (side, side)
    return EncoderInfo(
        model_type=vision.model_type,
        width=width * merge**2 * several,
        layer=int(layer if isinstance(layer, int) else layer[-1]),
        depth=int(_first(vision, "num_hidden_layers", "depth", default=0)),
        heads=int(_first(vision, "num_attention_heads", "num_heads", default=0)),
        ffn=int(_first(vision, "intermediate_size", default=0) or width * _ratio(vision)),
        grid=grid,
        embed_width=int(config.get_text_config().hidden_size),
    )


def _fused(config: Any, vision: Any, fusion: FusionConfig) -> EncoderInfo:
    """Of a FusedLlava: the rows that each token of the LLM is made of.

    Its type says how they are made of the encoder's, unless they are just the encoder's. layer: of
    several blocks the one farthest up.
    """
    layers, depth = config.vision_feature_layer, int(vision.num_hidden_layers)
    blocks = [layers] if isinstance(layers, int) else layers
    plain = fusion.kind == "mlp" and fusion.blocks == 1
    made = f"/{fusion.kind}-{fusion.form}-k{fusion.kernel}-e{fusion.fused}-m{fusion.blocks}"
    return EncoderInfo(
        model_type=vision.model_type + ("" if plain else made),
        width=fusion.row_width,
        layer=blocks[topmost(blocks, depth)],
        depth=depth,
        heads=int(vision.num_attention_heads),
        ffn=int(vision.intermediate_size),
        grid=fusion.token_grid,
        embed_width=fusion.out_width,
    )


def llm_info(model: Any, layer: int) -> EncoderInfo:
    """What the hidden states that enter decoder layer `layer` of `model` look like (site "llm").

    Raises `ConfigError` for a layer the LLM does not have, `UnsupportedError` for a family whose
    LLM cannot be cut.
    """
    text, depth = model.config.get_text_config(), len(decoder_of(model).layers)
    return EncoderInfo(
        model_type=text.model_type,
        width=int(text.hidden_size),
        layer=layer,
        depth=depth,
        heads=int(text.num_attention_heads),
        ffn=int(text.intermediate_size),
        grid=encoder_info(model).grid,
        site=Site.LLM,
    )


def _ratio(vision: Any) -> float:
    return float(getattr(vision, "mlp_ratio", 0))


def _scalar(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def _first(config: Any, *names: str, default: Any) -> Any:
    """The first of the named fields `config` has a value for."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), default)


def state_hash(model: torch.nn.Module) -> str:
    """Short hash of a module's parameters and buffers."""
    return _hash(model.state_dict())


def encoder_hash(model: Any) -> str:
    """Short hash of all weights that turn a picture into visual tokens: all but the LLM's."""
    base, words = model.base_model, model.get_input_embeddings()
    llm = [
        name
        for name, child in base.named_children()
        if any(module is words for module in child.modules())
    ]
    return _hash(
        {
            name: value
            for name, value in base.state_dict().items()
            if name.partition(".")[0] not in llm
        }
    )


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        raw: Any = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(raw)
    return digest.hexdigest()[:16]
