"""Tiny models around decoders whose layers are not all alike: windows shorter than the prompt,
convolutions, linear attention, experts, three axes of positions; and around other encoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as tf

from families.parts import (
    BEGIN,
    END,
    IMAGE,
    PAD,
    VIDEO,
    llm,
    mrope,
    padded,
    patches,
    pixtral,
    qwen,
    siglip,
    square,
    tiles,
    vit,
)
from families.tiny import Tiny

WINDOW = 14  # places: reaches into the last picture, and not through it
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def _gemma3(first: str = "sliding_attention") -> Any:
    kinds = MIXED if first == MIXED[0] else ["full_attention", "sliding_attention", *MIXED[1:2]]
    text = llm("gemma3_text", head_dim=8, sliding_window=WINDOW, layer_types=kinds)
    config = tf.Gemma3Config(
        vision_config=siglip(3), text_config=text, image_token_id=IMAGE, image_token_index=IMAGE,
        mm_tokens_per_image=16,
    )  # fmt: skip
    return tf.Gemma3ForConditionalGeneration(config), square


def _gemma3_full_first() -> Any:
    return _gemma3("full_attention")


def _cohere2() -> dict[str, Any]:
    return llm("cohere2", sliding_window=WINDOW, layer_types=MIXED)


def _aya_vision() -> Any:
    config = tf.AyaVisionConfig(
        vision_config=siglip(3), text_config=_cohere2(), image_token_id=IMAGE,
        image_token_index=IMAGE, vision_feature_layer=-1, downsample_factor=2,
    )  # fmt: skip
    return tf.AyaVisionForConditionalGeneration(config), square


def _cohere2_vision() -> Any:
    config = tf.Cohere2VisionConfig(
        vision_config=siglip(3), text_config=_cohere2(), image_token_id=IMAGE,
        downsample_factor=2, alignment_intermediate_size=64,
    )  # fmt: skip
    return tf.Cohere2VisionForConditionalGeneration(config), square


def _mistral3() -> Any:
    config = tf.Mistral3Config(
        vision_config=pixtral(), text_config=llm("mistral", head_dim=8, sliding_window=WINDOW),
        image_token_id=IMAGE, image_token_index=IMAGE, vision_feature_layer=-1,
        spatial_merge_size=2,
    )  # fmt: skip
    return tf.Mistral3ForConditionalGeneration(config), padded


def _glm4v() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = llm("glm4v_text", rope_parameters={**rope, "partial_rotary_factor": 1.0})
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32, "image_size": 48}
    marks = {"image_start_token_id": BEGIN, "image_end_token_id": END}
    marks |= {"video_start_token_id": 154, "video_end_token_id": 155}
    given = qwen(vision)
    config = tf.Glm4vConfig(
        vision_config=given["vision_config"], text_config=text, image_token_id=IMAGE,
        video_token_id=VIDEO, **marks,
    )  # fmt: skip
    return tf.Glm4vForConditionalGeneration(config), patches


def _qwen3_vl_moe() -> Any:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"deepstack_visual_indexes": [1], "num_position_embeddings": 64}
    text = mrope("qwen3_vl_moe_text", head_dim=8, num_experts=4, num_experts_per_tok=2)
    config = tf.Qwen3VLMoeConfig(text_config=text | {"moe_intermediate_size": 16}, **qwen(vision))
    return tf.Qwen3VLMoeForConditionalGeneration(config), patches


def _qwen3_5() -> Any:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    kinds = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    heads |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    text = mrope("qwen3_5_text", head_dim=8, layer_types=kinds, **heads)
    text["rope_parameters"]["partial_rotary_factor"] = 1.0
    config = tf.Qwen3_5Config(
        text_config=text | {"num_hidden_layers": 4},
        **qwen(vision | {"num_position_embeddings": 64}),
    )
    return tf.Qwen3_5ForConditionalGeneration(config), patches


def _spatial(n: list[int]) -> dict[str, torch.Tensor]:
    pixels = torch.stack([_noise(i) for i in range(sum(n))])
    mask = torch.ones(sum(n), 64, dtype=torch.long)
    shapes = torch.tensor([[8, 8]] * sum(n))
    return {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": mask}


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(64, 48, generator=torch.Generator().manual_seed(seed))


def _lfm2_vl() -> Any:
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    vision = {"model_type": "siglip2_vision_model", "hidden_size": 24, "intermediate_size": 32}
    vision |= {"num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4, "num_patches": 64}
    text = llm("lfm2", layer_types=kinds) | {"num_hidden_layers": 4}
    config = tf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, downsample_factor=2,
        projector_hidden_size=32, vision_feature_layer=-1,
    )  # fmt: skip
    return tf.Lfm2VlForConditionalGeneration(config), _spatial


def _dinov2_llava() -> Any:
    vision = vit("dinov2") | {"mlp_ratio": 2}
    config = tf.LlavaConfig(vision_config=vision, text_config=llm(), image_token_id=IMAGE)
    return tf.LlavaForConditionalGeneration(config), square


def _idefics2() -> Any:
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 24, "patch_size": 3}
    perceiver = {"hidden_size": 32, "resampler_n_latents": 8, "resampler_depth": 1}
    perceiver |= {"resampler_n_heads": 2, "resampler_head_dim": 8, "num_key_value_heads": 1}
    config = tf.Idefics2Config(
        vision_config=vision, perceiver_config=perceiver, image_token_id=IMAGE,
        text_config=llm("mistral", head_dim=8, sliding_window=WINDOW),
    )  # fmt: skip
    return tf.Idefics2ForConditionalGeneration(config), tiles


_BUILDERS = {
    "gemma3": _gemma3, "gemma3_full_first": _gemma3_full_first, "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision, "mistral3": _mistral3, "glm4v": _glm4v,
    "qwen3_vl_moe": _qwen3_vl_moe, "qwen3_5": _qwen3_5, "lfm2_vl": _lfm2_vl, "idefics2": _idefics2,
    "dinov2_llava": _dinov2_llava,
}  # fmt: skip
WINDOWED = ("gemma3", "gemma3_full_first", "aya_vision", "cohere2_vision", "mistral3")
FULL = ("glm4v", "qwen3_vl_moe")
HYBRID = ("qwen3_5", "lfm2_vl")


@dataclass(frozen=True)
class Told(Tiny):
    """A tiny model whose processor says of each token what it is."""

    def inputs(self, pictures: list[int], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As of any, and the types of the tokens."""
        out = super().inputs(pictures, *args, **kwargs)
        types = (out["input_ids"] == IMAGE).long()
        if self.name.startswith("gemma3"):
            out["token_type_ids"] = types
        if self.name.startswith(("glm", "qwen")):
            out["mm_token_type_ids"] = types.int()
        return out


@cache
def build(name: str, attention: str = "sdpa") -> Told:
    """The tiny model `name`, its weights drawn so that attention matters."""
    torch.manual_seed(0)
    model, pixels = _BUILDERS[name]()
    generator = torch.Generator().manual_seed(11)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 1.0 if "embed_tokens" in key else 2.0 / weight.shape[-1] ** 0.5
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    model.eval().set_attn_implementation(attention)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return Told(name, model, pixels)
