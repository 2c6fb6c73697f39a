"""A fused LLaVA made of another model's encoder and LLM."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.fields import check_number
from tokensieve.hf.fused.config import ENCODERS, FusedLlavaConfig, check_blocks, pair
from tokensieve.hf.fused.model import (
    FusedLlavaForConditionalGeneration,
    FusedLlavaModel,
    drawn_projector,
    drawn_routers,
)
from tokensieve.hf.fused.processor import FusedLlavaProcessor
from tokensieve.hf.models.loaded import Loaded
from tokensieve.hf.prompt.template import placeholder_of
from tokensieve.hf.runtime.arguments import require_model, require_processor
from tokensieve.hf.runtime.devices import input_device
from tokensieve.nn.fusion import spaced_blocks

_ONE_VIEW = ("llava", "vipllava", "fused_llava")  # their processors cut no tiles


def fuse(
    model: Any, processor: Any, *, blocks: int | Sequence[int] = 8, kernel: int = 2,
    fused: int = 1, kind: str = "fusion", form: str = "paper", seed: int = 0,
) -> Loaded:  # fmt: skip
    """A model whose LLM reads fused tokens, and its processor; the projector is yet to be trained.

    Encoder and LLM are those of `model`, shared and not copied: a LLaVA, or any model of
    Transformers made of a `vision_tower` (CLIP, SigLIP, InternViT) and a `language_model`. Tiles
    are given up: each picture is one view of the encoder's own size.

    blocks: so many evenly spaced blocks of the encoder, the last one that which `model` reads
        where it reads one; or the blocks themselves, as indices into `hidden_states`, in the order
        in which they lie on the channels.
    kernel, fused, kind, form: as in `FusionConfig`. seed: what the projector is drawn from.

    Raises `UnsupportedError` for a model without these parts, `ConfigError` for blocks that the
    encoder does not have and for what `FusionConfig` refuses.
    """
    base, seed = _base_of(model), check_number("seed", seed, low=0)
    require_processor(processor)
    config = _config(model, _blocks(model, blocks), kernel, fused, kind, form)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = drawn_projector(config)
    projector = projector.to(input_device(model), model.dtype)
    made = assemble(
        config, base.vision_tower, projector, base.language_model,
        model.get_output_embeddings(),
    )  # fmt: skip
    made.generation_config = deepcopy(model.generation_config)
    made.train(model.training)
    name = Path(model.config.name_or_path or model.config.model_type).name
    return Loaded(f"{name}+{kind}", made, _processor(model, processor, config))


def deepen(
    model: Any, processor: Any, kind: str = "p-mod", keep: float = 0.5, *, seed: int = 0
) -> Loaded:  # fmt: skip
    """A model in whose LLM visual tokens skip layers, and its processor; the routers that choose
    them are yet to be trained, and the LLM with them.

    Encoder, projector and LLM are those of `model`, shared and not copied: a fused LLaVA, or a
    LLaVA whose projector is two linear layers with a GELU between, which becomes the kind "mlp".
    kind, keep: as in `DepthsConfig`. seed: what the routers are drawn from.

    Raises `UnsupportedError` for another model, `ConfigError` for one whose tokens skip layers
    already and for what `DepthsConfig` refuses.
    """
    if not isinstance(_base_of(model), FusedLlavaModel):
        fused = fuse(model, processor, blocks=1, kernel=1, kind="mlp")
        fused.model.model.multi_modal_projector.spatial.mlp = _own_mlp(model)
        model, processor = fused.model, fused.processor
    if model.config.depths is not None:
        raise ConfigError(
            f"Expected a model whose layers read all tokens. Got one of the kind "
            f"'{model.config.depths_kind}' already. Train it as it is."
        )
    config = deepcopy(model.config)
    config.depths_kind, config.depths_keep = kind, keep
    routers = drawn_routers(config, check_number("seed", seed, low=0))
    base = model.model
    made = assemble(
        config, base.vision_tower, base.multi_modal_projector, base.language_model, model.lm_head
    )
    made.model.routers = routers.to(input_device(model), model.dtype) if routers else None
    made.generation_config = deepcopy(model.generation_config)
    made.train(model.training)
    name = Path(model.config.name_or_path or model.config.model_type).name
    return Loaded(f"{name}+{kind}", made, processor)


def _own_mlp(model: Any) -> nn.Sequential:
    """The two layers of a LLaVA's projector. Raises `UnsupportedError` for another one."""
    own = _base_of(model).multi_modal_projector
    first: Any = getattr(own, "linear_1", None)
    second: Any = getattr(own, "linear_2", None)
    biased = all(isinstance(one, nn.Linear) and one.bias is not None for one in (first, second))
    blocks = model.config.vision_feature_layer
    if not biased or model.config.projector_hidden_act != "gelu" or not isinstance(blocks, int):
        raise UnsupportedError(
            "Expected a projector of two linear layers with biases and a GELU between, on one "
            f"block. Got {type(own).__name__}. Fuse the model first: tokensieve.hf.fused.fuse."
        )
    return nn.Sequential(first, nn.GELU(), second)


def assemble(
    config: FusedLlavaConfig, tower: nn.Module, projector: nn.Module, llm: nn.Module,
    head: nn.Module,
) -> FusedLlavaForConditionalGeneration:  # fmt: skip
    """The model of these very parts; nothing is copied or drawn."""
    with torch.device("meta"):
        made = FusedLlavaForConditionalGeneration(config)
    made.model.vision_tower = tower
    made.model.multi_modal_projector = projector
    made.model.language_model = llm
    made.lm_head = head
    return made


def _base_of(model: Any) -> Any:
    """What holds the parts of `model`."""
    require_model(model)
    base = getattr(model, "base_model", None)
    parts = ("vision_tower", "language_model")
    lacks = [name for name in parts if not isinstance(getattr(base, name, None), nn.Module)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if lacks or not isinstance(head, nn.Linear):
        raise UnsupportedError(
            "Expected a vision-language model made of `vision_tower`, `language_model` and an "
            f"output layer, such as LLaVA or InternVL. Got {type(model).__name__}"
            f"{' without ' + ' and '.join(lacks) if lacks else ''}. If it wraps another model "
            "(PEFT, DDP), pass that one."
        )
    encoder = model.config.vision_config.model_type
    if encoder not in ENCODERS:
        raise UnsupportedError(
            f"Expected an encoder with one grid for all pictures: {', '.join(ENCODERS)}. Got "
            f"'{encoder}'. Tokens of its pictures cannot be fused by cells of a fixed grid."
        )
    return base


def _blocks(model: Any, blocks: object) -> list[int]:
    """Indices of the blocks that are read."""
    depth = model.config.vision_config.num_hidden_layers
    own = getattr(model.config, "vision_feature_layer", None)
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        if not isinstance(own, int):
            return list(spaced_blocks(depth, blocks))
        last = own % (depth + 1)
        below = spaced_blocks(depth, blocks)[:-1]
        if below and below[-1] >= last:
            below = spaced_blocks(last, blocks)[:-1]
        return [*below, own]
    if not isinstance(blocks, Sequence) or not all(type(block) is int for block in blocks):
        raise ConfigError(
            f"Expected `blocks` as a number of them or their indices. Got {blocks!r}. Pass "
            "blocks=8, or blocks=[3, 6, -2]."
        )
    check_blocks(list(blocks), depth)
    return list(blocks)


def _config(
    model: Any, blocks: list[int], kernel: int, fused: int, kind: str, form: str
) -> FusedLlavaConfig:
    old = model.config
    config = FusedLlavaConfig(
        vision_config=old.vision_config,
        text_config=old.text_config,
        image_token_index=old.image_token_id,
        vision_feature_layer=blocks if len(blocks) > 1 else blocks[0],
        vision_feature_select_strategy=(
            "default" if ENCODERS[old.vision_config.model_type] else "full"
        ),
        fusion_kind=kind,
        fusion_kernel=kernel,
        fusion_fused=fused,
        fusion_form=form,
        dtype=model.dtype,
    )
    config._attn_implementation = old._attn_implementation
    head, words = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    config.tie_word_embeddings = head is words
    return config


def _processor(model: Any, processor: Any, config: FusedLlavaConfig) -> Any:
    """The base model's tokenizer and chat template, and its pictures as one view each."""
    token = placeholder_of(processor)
    known = processor.tokenizer.convert_tokens_to_ids(token)
    if known != config.image_token_id:
        raise ConfigError(
            f"Expected the processor of the model, in which '{token}' is token "
            f"{config.image_token_id}. Got one in which it is {known}. Pass the model's own."
        )
    vision = config.vision_config
    pictures = processor.image_processor
    if model.config.model_type not in _ONE_VIEW:
        pictures = _one_view(pictures, pair(vision.image_size))
    return FusedLlavaProcessor(
        pictures,
        processor.tokenizer,
        patch_size=pair(vision.patch_size)[0],
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=getattr(processor, "chat_template", None),
        image_token=token,
        num_additional_image_tokens=int(ENCODERS[vision.model_type]),
        kernel=config.fusion_kernel,
        fused=config.fusion_fused,
    )


def _one_view(pictures: Any, size: tuple[int, int]) -> Any:
    """An image processor that resizes the whole picture, with the colours of one that cuts tiles.

    Pillow only: no torchvision is needed.
    """
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    kept = ("image_mean", "image_std", "resample", "rescale_factor", "do_convert_rgb")
    said = {name: getattr(pictures, name, None) for name in kept}
    return SiglipImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        **{name: value for name, value in said.items() if value is not None},
    )
