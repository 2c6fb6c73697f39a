"""Vision towers of real shapes with random weights, to measure without a download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from tokensieve.cost.encoders import EncoderShape
from tokensieve.errors import UnsupportedError


def build_tower(shape: EncoderShape) -> torch.nn.Module:
    """The tower of a shape, as Transformers builds it for the checkpoint, with random weights.

    Raises `UnsupportedError` for an encoder without a builder.
    """
    t = shape.transformer
    sizes: dict[str, Any] = {"hidden_size": t.width, "intermediate_size": t.ffn,
                             "patch_size": shape.patch}  # fmt: skip
    if shape.model_type == "qwen2_5_vl_vision":
        period = t.layers // shape.full_layers
        return Qwen2_5_VisionTransformerPretrainedModel(
            Qwen2_5_VLVisionConfig(
                **sizes, depth=t.layers, num_heads=t.heads, out_hidden_size=shape.embed_width,
                spatial_merge_size=shape.merge, window_size=shape.window * shape.patch,
                temporal_patch_size=shape.frames,
                fullatt_block_indexes=list(range(period - 1, t.layers, period)),
            )
        )  # fmt: skip
    sizes |= {"num_hidden_layers": t.layers, "num_attention_heads": t.heads}
    sizes["image_size"] = shape.size[0]
    if shape.model_type == "clip_vision_model":
        return CLIPVisionModel(CLIPVisionConfig(**sizes))
    if shape.model_type == "siglip_vision_model":
        return SiglipVisionModel(SiglipVisionConfig(**sizes, vision_use_head=False))
    if shape.model_type == "internvl_vision":
        return InternVLVisionModel(InternVLVisionConfig(**sizes, attention_bias=True))
    raise UnsupportedError(
        f"Expected one of the encoders of tokensieve.cost.encoders. Got '{shape.model_type}'. "
        "Add a builder beside its shape."
    )


def tower_inputs(shape: EncoderShape, crops: int) -> dict[str, Tensor]:
    """Random inputs of `crops` crops for `build_tower`'s tower."""
    if shape.model_type == "qwen2_5_vl_vision":
        patches = crops * shape.rows * shape.cols
        return {
            "hidden_states": torch.rand(patches, 3 * shape.frames * shape.patch**2),
            "grid_thw": torch.tensor([[1, shape.rows, shape.cols]] * crops),
        }
    return {"pixel_values": torch.rand(crops, 3, *shape.size)}
