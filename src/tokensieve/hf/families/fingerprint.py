"""The fingerprint of a model's vision encoder, which trained methods are bound to."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tokensieve.errors import EncoderMismatchWarning
from tokensieve.hf.families.table import decoder_of, family_of
from tokensieve.hf.runtime.devices import at_hand
from tokensieve.hf.runtime.once import once
from tokensieve.methods.base import Method
from tokensieve.nn.fusion import FusionConfig, topmost
from tokensieve.types import EncoderInfo, Site

_FIXED_GRID = ("clip_vision_model", "siglip_vision_model", "internvl_vision")


@once
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
        side = _patches_along(vision) // (merge if family.merged else patches_joined(config))
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


def patches_joined(config: Any) -> int:
    """Along a side of the square of patches of which a VLM makes one token, how many there are;
    1 where each patch is a token."""
    if (ratio := getattr(config, "downsample_ratio", None)) is not None:
        return round(1 / float(ratio))
    if (factor := getattr(config, "downsample_factor", None)) is not None:
        return int(factor)
    if (tokens := getattr(config, "mm_tokens_per_image", None)) is not None:
        return _patches_along(config.vision_config) // math.isqrt(tokens)
    return 1


def _patches_along(vision: Any) -> int:
    return _scalar(vision.image_size) // _scalar(vision.patch_size)


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
    depth = len(decoder_of(model).layers)
    text = model.config.get_text_config()
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
    return _hash(model, model.state_dict())


def encoder_hash(model: Any) -> str:
    """Short hash of all weights that turn a picture into visual tokens: all but the LLM's."""
    base, words = model.base_model, model.get_input_embeddings()
    llm = [
        name
        for name, child in base.named_children()
        if any(module is words for module in child.modules())
    ]
    return _hash(
        base,
        {
            name: value
            for name, value in base.state_dict().items()
            if name.partition(".")[0] not in llm
        },
    )


def _hash(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> str:
    """Of entries of the model's state."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        with at_hand([module]):
            held: torch.Tensor = getattr(module, own) if value.is_meta else value
            raw: Any = held.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(raw)
    return digest.hexdigest()[:16]


def tower_hashes(model: Any, site: Site) -> tuple[tuple[str, str], ...]:
    """(dtype, short hash) of the parameters that make a site's tokens: the encoder's, and the
    projector's for "embeds". Names do not count, which releases of Transformers change.

    In float32 the hashes of their roundings to 16 bits are there too, as which the same checkpoint
    may be loaded. Reads every parameter: about a second for each GB of them.
    """
    own = str(model.dtype).removeprefix("torch.")
    kinds = ("float32", "bfloat16", "float16") if own == "float32" else (own,)
    found = ((kind, _tower_hash(model, site, kind)) for kind in kinds)
    return tuple((kind, text) for kind, text in found if text is not None)


_HASHES: WeakKeyDictionary[Any, dict[tuple[Site, str], str | None]] = WeakKeyDictionary()
_TOLD: WeakKeyDictionary[Any, set[tuple[str, str]]] = WeakKeyDictionary()


def warn_of_other_weights(model: Any, method: Method) -> None:
    """Warn, once for each pair, where a trained `method` meets an encoder of the right shape and
    other weights. Silent where either hash is not known: weights of before hashes were kept, other
    dtypes than were hashed, quantised and offloaded encoders.

    The model is hashed once, at the first method that knows its own; weights that change after
    that are not noticed.
    """
    trained = method.trained_for()
    if trained is None or not trained.hashes or not isinstance(model, torch.nn.Module):
        return
    own, known = str(model.dtype).removeprefix("torch."), dict(trained.hashes)
    if own not in known:
        return
    hashes = _HASHES.setdefault(model, {})
    if (trained.site, own) not in hashes:
        hashes[trained.site, own] = _tower_hash(model, trained.site, own)
    got, pair = hashes[trained.site, own], (trained.name, known[own])
    told = _TOLD.setdefault(model, set())
    if got in (None, known[own]) or pair in told:
        return
    told.add(pair)
    warnings.warn(
        f"Expected the encoder that {trained.name} was trained for, of hash {known[own]}. Got one "
        f"of the same shape with other weights, {got}, in {type(model).__name__} "
        f"'{getattr(model.config, 'name_or_path', '')}'. A fine-tuned copy may do; train a "
        "selector for another, or silence tokensieve.errors.EncoderMismatchWarning.",
        EncoderMismatchWarning,
        stacklevel=2,
    )


def _tower_hash(model: Any, site: Site, kind: str) -> str | None:
    """None where a parameter is not there, or of a kind that cannot be rounded to `kind`."""
    base, words, dtype = model.base_model, model.get_input_embeddings(), getattr(torch, kind)
    skipped = family_of(model).projector + "." if site is Site.FEATURES else None
    digests = []
    for top, child in base.named_children():
        if any(module is words for module in child.modules()):
            continue
        for name, value in child.named_parameters(prefix=top):
            if skipped is not None and name.startswith(skipped):
                continue
            if value.is_meta or value.dtype not in (dtype, torch.float32):
                return None
            raw: Any = value.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8)
            digests.append(hashlib.sha256(str(tuple(value.shape)).encode() + b" "))
            digests[-1].update(raw.numpy())
    whole = hashlib.sha256(b"".join(sorted(digest.digest() for digest in digests)))
    return whole.hexdigest()[:16]
