"""Tiny random models of the families that are cut before the LLM only: see `tiny.py`.

Each is a builder: model and pictures. Inputs are made by hand as the family's processor would give
them; what a prompt holds besides (token types) is told by the model's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from families.parts import (
    BEGIN,
    END,
    IMAGE,
    PINPOINTS,
    VIDEO,
    VOCAB,
    Pixels,
    anyres,
    clip,
    each,
    llm,
    mrope,
    patches,
    qwen,
    siglip,
    square,
    tiles,
    vit,
)  # fmt: skip

from families.others import (  # isort: skip
    _got_ocr2,
    _lighton_ocr,
    _deepseek_vl,
    _janus,
    _ovis2,
    _ernie4_5_vl,
    _paddleocr_vl,
    _hunyuan_vl,
    _exaone4_5,
    _aria,
    _video_llama_3,
    _llama4,
    _kimi_k25,
    _fuyu,
    _perception_lm,
    _fast_vlm,
    _molmo2,
    _minicpmv4_6,
    _granite4_vision,
)

ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _llava_next_video() -> tuple[Any, Pixels]:
    config = tf.LlavaNextVideoConfig(
        vision_config=clip(), text_config=llm(), image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    return tf.LlavaNextVideoForConditionalGeneration(config), anyres


def _video_llava() -> tuple[Any, Pixels]:
    config = tf.VideoLlavaConfig(
        vision_config=clip(), text_config=llm(), image_token_index=IMAGE, video_token_index=VIDEO
    )
    return tf.VideoLlavaForConditionalGeneration(config), _images


def _images(n: list[int]) -> dict[str, torch.Tensor]:
    return {"pixel_values_images": each(n, 3, 24, 24)}


def _aya_vision() -> tuple[Any, Pixels]:
    config = tf.AyaVisionConfig(
        vision_config=siglip(3), text_config=llm("cohere2", sliding_window=512),
        image_token_index=IMAGE, vision_feature_layer=-1,
    )  # fmt: skip
    return tf.AyaVisionForConditionalGeneration(config), square


def _cohere2_vision() -> tuple[Any, Pixels]:
    config = tf.Cohere2VisionConfig(
        vision_config=siglip(3), text_config=llm("cohere2", sliding_window=512),
        image_token_id=IMAGE, alignment_intermediate_size=64,
    )  # fmt: skip
    return tf.Cohere2VisionForConditionalGeneration(config), square


def _idefics2() -> tuple[Any, Pixels]:
    perceiver = {"hidden_size": 32, "resampler_n_latents": 8, "resampler_depth": 1,
                 "resampler_n_heads": 2, "resampler_head_dim": 8,
                 "num_key_value_heads": 1}  # fmt: skip
    config = tf.Idefics2Config(
        vision_config=vit("idefics2_vision", 3), perceiver_config=perceiver,
        text_config=llm("mistral", head_dim=8, sliding_window=None), image_token_id=IMAGE,
    )  # fmt: skip
    model = tf.Idefics2ForConditionalGeneration(config)
    norm = model.model.connector.perceiver_resampler.norm  # else all rows were as long
    norm.weight.data = torch.linspace(0.2, 2.0, len(norm.weight))
    return model, tiles


def _qwen3_moe(**more: Any) -> dict[str, Any]:
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "head_dim": 8, **more}  # fmt: skip


def _qwen3_vl_moe() -> tuple[Any, Pixels]:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"deepstack_visual_indexes": [1], "num_position_embeddings": 64}
    config = tf.Qwen3VLMoeConfig(
        text_config=mrope("qwen3_vl_moe_text", **_qwen3_moe()), **qwen(vision)
    )
    return tf.Qwen3VLMoeForConditionalGeneration(config), patches


def _qwen3_5() -> tuple[Any, Pixels]:
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    text = llm("qwen3_5_text", head_dim=8, layer_types=kinds, linear_num_key_heads=2,
               linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
               rope_parameters={**ROPE, "mrope_section": [2, 1, 1],
                                "partial_rotary_factor": 1.0})  # fmt: skip
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    config = tf.Qwen3_5Config(text_config=text, **qwen(vision | {"num_position_embeddings": 64}))
    return tf.Qwen3_5ForConditionalGeneration(config), patches


def _qwen2_5_omni() -> tuple[Any, Pixels]:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    parts = qwen(vision)
    config = tf.Qwen2_5OmniThinkerConfig(
        text_config=mrope("qwen2_5_omni_text"), vision_config=parts["vision_config"],
        audio_config={"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                      "d_model": 24, "output_dim": 32, "num_mel_bins": 8},
        image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=154,
        vision_start_token_id=BEGIN, vision_end_token_id=END,
    )  # fmt: skip
    return tf.Qwen2_5OmniThinkerForConditionalGeneration(config), patches


def _glm_parts() -> dict[str, Any]:
    parts = qwen({"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32,
                  "image_size": 48})  # fmt: skip
    ids = {"image_start_token_id": BEGIN, "image_end_token_id": END,
           "video_start_token_id": 154, "video_end_token_id": 155}  # fmt: skip
    return {"vision_config": parts["vision_config"], "image_token_id": IMAGE,
            "video_token_id": VIDEO, **ids}  # fmt: skip


def _glm_rope() -> dict[str, Any]:
    return {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}


def _glm4v() -> tuple[Any, Pixels]:
    config = tf.Glm4vConfig(
        text_config=llm("glm4v_text", rope_parameters=_glm_rope()), **_glm_parts()
    )
    return tf.Glm4vForConditionalGeneration(config), patches


def _glm46v() -> tuple[Any, Pixels]:
    parts = _glm_parts()
    parts["vision_config"]["model_type"] = "glm4v_vision"
    config = tf.Glm46VConfig(text_config=llm("glm4v_text", rope_parameters=_glm_rope()), **parts)
    return tf.Glm46VForConditionalGeneration(config), patches


def _glm4v_moe() -> tuple[Any, Pixels]:
    text = llm("glm4v_moe_text", rope_parameters=_glm_rope(), n_routed_experts=4,
               num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1,
               n_group=1, topk_group=1, n_shared_experts=1, head_dim=8)  # fmt: skip
    config = tf.Glm4vMoeConfig(text_config=text, **_glm_parts())
    return tf.Glm4vMoeForConditionalGeneration(config), patches


def _glm_ocr() -> tuple[Any, Pixels]:
    text = llm("glm_ocr_text", rope_parameters=_glm_rope(), head_dim=8)
    config = tf.GlmOcrConfig(text_config=text, **_glm_parts())
    return tf.GlmOcrForConditionalGeneration(config), patches


def _lfm2_vl() -> tuple[Any, Pixels]:
    text = llm("lfm2", layer_types=["conv", "full_attention", "conv"])
    vision = vit("siglip2_vision_model", 4) | {"num_patches": 64}
    config = tf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, projector_hidden_size=32
    )

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": each(n, 64, 48),
                "spatial_shapes": torch.tensor([[8, 8]] * sum(n)),
                "pixel_attention_mask": torch.ones(sum(n), 64, dtype=torch.long)}  # fmt: skip

    return tf.Lfm2VlForConditionalGeneration(config), pixels


def _gemma4() -> tuple[Any, Pixels]:
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    text = llm("gemma4_text", head_dim=8, global_head_dim=8, sliding_window=512, layer_types=kinds,
               vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=8)  # fmt: skip
    vision = vit("gemma4_vision", 4) | {"num_key_value_heads": 2, "head_dim": 12}
    vision |= {"pooling_kernel_size": 2, "position_embedding_size": 64}
    config = tf.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IMAGE,
        video_token_id=VIDEO,
    )  # fmt: skip

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        places = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy"), -1)
        return {"pixel_values": each(n, 64, 48),
                "image_position_ids": places.reshape(1, -1, 2).repeat(sum(n), 1, 1)}  # fmt: skip

    return tf.Gemma4ForConditionalGeneration(config), pixels


MORE = {
    builder.__name__[1:]: builder
    for builder in (
        _llava_next_video, _video_llava, _aya_vision, _cohere2_vision, _idefics2, _qwen3_vl_moe,
        _qwen3_5, _qwen2_5_omni, _glm4v, _glm46v, _glm4v_moe, _glm_ocr, _lfm2_vl, _gemma4,
        _got_ocr2, _lighton_ocr, _deepseek_vl, _janus, _ovis2, _ernie4_5_vl, _paddleocr_vl,
        _hunyuan_vl, _exaone4_5, _aria, _video_llama_3, _kimi_k25, _perception_lm,
        _fast_vlm, _molmo2, _minicpmv4_6,
    )
}  # fmt: skip
# their rows stand elsewhere, or their pictures have another name than their encoder wants
ROWLESS = {"llama4": _llama4, "fuyu": _fuyu, "granite4_vision": _granite4_vision}
