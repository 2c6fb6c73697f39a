"""More tiny random models, as in `more.py`: of families that feed pictures in their own ways."""

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
    each,
    llm,
    mrope,
    noise,
    padded,
    patches,
    pixtral,
    qwen,
    siglip,
    square,
    vit,
)  # fmt: skip

ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _got_ocr2() -> tuple[Any, Pixels]:
    vision = {"hidden_size": 24, "output_channels": 16, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 64, "patch_size": 4, "window_size": 4,
              "global_attn_indexes": [1], "mlp_dim": 32}  # fmt: skip
    config = tf.GotOcr2Config(vision_config=vision, text_config=llm("qwen2"),
                              image_token_index=IMAGE)  # fmt: skip

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": each(n, 3, 64, 64)}

    return tf.GotOcr2ForConditionalGeneration(config), pixels


def _lighton_ocr() -> tuple[Any, Pixels]:
    config = tf.LightOnOcrConfig(
        vision_config=pixtral(), text_config=llm("qwen3", head_dim=8), image_token_id=IMAGE
    )
    return tf.LightOnOcrForConditionalGeneration(config), padded


def _deepseek_vl() -> tuple[Any, Pixels]:
    config = tf.DeepseekVLConfig(vision_config=siglip(), text_config=llm(), image_token_id=IMAGE)
    return tf.DeepseekVLForConditionalGeneration(config), square


def _janus() -> tuple[Any, Pixels]:
    vision = vit("janus_vision_model") | {"mlp_ratio": 2.0, "projection_dim": 32, "depth": 2}
    vision |= {"num_image_tokens": 16}
    vq = {"embed_dim": 4, "num_embeddings": 32, "latent_channels": 32, "base_channels": 32,
          "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4,
          "projection_dim": 32, "image_token_embed_dim": 32, "num_hidden_layers": 1}  # fmt: skip
    config = tf.JanusConfig(
        vision_config=vision, text_config=llm(), vq_config=vq, image_token_id=IMAGE
    )
    return tf.JanusForConditionalGeneration(config), square


def _ovis2() -> tuple[Any, Pixels]:
    vision = vit("ovis2_vision", 3) | {"vocab_size": 20, "hidden_stride": 2,
                                       "num_visual_indicator_tokens": 2}  # fmt: skip
    config = tf.Ovis2Config(
        vision_config=vision, text_config=llm("qwen2"), image_token_id=IMAGE, vocab_size=VOCAB,
        hidden_size=32, visual_indicator_token_ids=[BEGIN, END],
    )  # fmt: skip
    return tf.Ovis2ForConditionalGeneration(config), square


def _ernie4_5_vl() -> tuple[Any, Pixels]:
    text = llm("ernie4_5_vl_moe_text", moe_intermediate_size=[32, 16], moe_k=2, moe_num_experts=4,
               moe_num_shared_experts=1, mlp_layer_types=["dense", "sparse", "sparse"],
               rope_parameters={**ROPE, "mrope_section": [1, 1, 2]})  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4,
              "intermediate_size": 32}  # fmt: skip
    config = tf.Ernie4_5_VLMoeConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        image_start_token_id=BEGIN, image_end_token_id=END, video_start_token_id=154,
        video_end_token_id=155,
    )  # fmt: skip
    return tf.Ernie4_5_VLMoeForConditionalGeneration(config), _single


def _single(n: list[int]) -> dict[str, torch.Tensor]:
    """Patches of one frame."""
    made = patches(n)
    return {**made, "pixel_values": made["pixel_values"][:, :48]}


def _stacked(n: list[int]) -> dict[str, torch.Tensor]:
    """Patches as small pictures."""
    made = _single(n)
    return {**made, "pixel_values": made["pixel_values"].view(-1, 3, 4, 4)}


def _paddleocr_vl() -> tuple[Any, Pixels]:
    config = tf.PaddleOCRVLConfig(
        text_config=mrope("paddleocr_vl_text", head_dim=8),
        vision_config=vit("paddleocr_vl_vision", 4) | {"image_size": 32}, image_token_id=IMAGE,
        video_token_id=VIDEO, vision_start_token_id=BEGIN, vision_end_token_id=END,
    )  # fmt: skip
    return tf.PaddleOCRVLForConditionalGeneration(config), _stacked


def _hunyuan_vl() -> tuple[Any, Pixels]:
    rope = {**ROPE, "mrope_section": [1, 1, 1, 1]}
    vision = vit("hunyuan_vl_vision", 4) | {"out_hidden_size": 32, "text_hidden_size": 32,
                                            "max_image_size": 64}  # fmt: skip
    config = tf.HunYuanVLConfig(
        text_config=llm("hunyuan_vl_text", head_dim=8, rope_parameters=rope), vision_config=vision,
        image_token_id=IMAGE, im_start_token_id=BEGIN, im_end_token_id=END, im_start_id=BEGIN,
        im_end_id=END, im_newline_id=154,
    )  # fmt: skip
    return tf.HunYuanVLForConditionalGeneration(config), _single


def _exaone4_5() -> tuple[Any, Pixels]:
    vision = {
        "hidden_size": 24,
        "out_hidden_size": 32,
        "intermediate_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "num_key_value_heads": 2,
    }
    parts = qwen(vision)
    config = tf.Exaone4_5_Config(
        text_config=llm("exaone4", sliding_window=None, head_dim=8,
                        layer_types=["full_attention"] * 3),
        vision_config=parts["vision_config"], image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip
    return tf.Exaone4_5_ForConditionalGeneration(config), patches


def _aria() -> tuple[Any, Pixels]:
    vision = vit("idefics3_vision", 3)
    text = llm("aria_text", moe_num_experts=4)
    config = tf.AriaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE,
        projector_patch_to_query_dict={64: 16},
    )  # fmt: skip
    return tf.AriaForConditionalGeneration(config), square


def _video_llama_3() -> tuple[Any, Pixels]:
    config = tf.VideoLlama3Config(
        text_config=llm("qwen2"), vision_config=vit("video_llama_3_vision", 4),
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        made = _single(n)
        return {**made, "image_merge_sizes": torch.full((sum(n),), 2)}

    return tf.VideoLlama3ForConditionalGeneration(config), pixels


def _llama4() -> tuple[Any, Pixels]:
    text = llm("llama4_text", intermediate_size_mlp=64, num_local_experts=2, head_dim=8,
               attention_chunk_size=512)  # fmt: skip
    vision = vit("llama4_vision_model") | {
        "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
        "intermediate_size": 96,
    }  # fmt: skip
    config = tf.Llama4Config(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return tf.Llama4ForConditionalGeneration(config), square


def _kimi_k25() -> tuple[Any, Pixels]:
    vision = vit("kimi_k25_vision", 4) | {"pos_emb_height": 8, "pos_emb_width": 8}
    text = llm("deepseek_v3", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
               first_k_dense_replace=1, n_group=1, topk_group=1, n_shared_experts=1,
               kv_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8,
               v_head_dim=8, num_key_value_heads=4)  # fmt: skip
    config = tf.Kimi_K25Config(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        projection_hidden_size=24, vision_start_token_id=BEGIN, vision_end_token_id=END,
    )  # fmt: skip
    return tf.Kimi_K25ForConditionalGeneration(config), _stacked


def _perception_lm() -> tuple[Any, Pixels]:
    """DINOv2 stands for its tower, which is timm's."""
    vision = vit("dinov2") | {"mlp_ratio": 2, "model_args": {"embed_dim": 24}}
    config = tf.PerceptionLMConfig(
        vision_config=vision, text_config=llm(), image_token_id=IMAGE, video_token_id=VIDEO
    )

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": each(n, 1, 3, 24, 24)}

    return tf.PerceptionLMForConditionalGeneration(config), pixels


def _fast_vlm() -> tuple[Any, Pixels]:
    """A ResNet stands for its tower, which is timm's and convolutional too."""
    vision = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 24],
              "hidden_size": 24, "depths": [1, 1], "layer_type": "basic"}  # fmt: skip
    config = tf.FastVlmConfig(
        vision_config=vision, text_config=llm("qwen2"), image_token_index=IMAGE
    )
    model = tf.FastVlmForConditionalGeneration(config)
    model.model.vision_tower._supports_sdpa = True  # it has no attention

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        return {"pixel_values": each(n, 3, 32, 32)}

    return model, pixels


def _molmo2() -> tuple[Any, Pixels]:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12}
    vision = vit("molmo2_vision") | heads | {"image_size": [24, 24], "num_position_embeddings": 16}
    adapter = {"vision_feature_layer": [-1, -2], "hidden_size": 24, "intermediate_size": 32,
               "text_hidden_size": 32, **heads}  # fmt: skip
    text = llm("molmo2_text", additional_vocab_size=8, head_dim=8, rope_parameters=ROPE)
    config = tf.Molmo2Config(
        vision_config=vision, adapter_config=adapter, text_config=text, image_patch_id=IMAGE,
        image_start_token_id=BEGIN, image_end_token_id=END, low_res_image_start_token_id=154,
        frame_start_token_id=155, frame_end_token_id=156,
    )  # fmt: skip
    four = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)  # 2 x 2 patches a token

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        count = sum(n)
        return {"pixel_values": each(n, 16, 108),
                "image_token_pooling": torch.cat([four + 16 * i for i in range(count)]),
                "image_grids": torch.tensor([[2, 2, 0, 0]] * count)}  # fmt: skip

    return tf.Molmo2ForConditionalGeneration(config), pixels


def _minicpmv4_6() -> tuple[Any, Pixels]:
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    text = llm("qwen3_5_text", head_dim=8, layer_types=kinds, linear_num_key_heads=2,
               linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
               rope_parameters={**ROPE, "mrope_section": [2, 1, 1],
                                "partial_rotary_factor": 1.0})  # fmt: skip
    vision = vit("minicpmv4_6_vision", 4) | {"insert_layer_id": 1, "image_size": 32}
    config = tf.MiniCPMV4_6Config(
        vision_config=vision, text_config=text, insert_layer_id=1, image_token_id=IMAGE,
        video_token_id=VIDEO,
    )  # fmt: skip

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        strips = [noise(1, 3, 4, 64 * 4, seed=i) for i in range(sum(n))]
        return {"pixel_values": torch.cat(strips, -1),
                "target_sizes": torch.tensor([[8, 8]] * sum(n), dtype=torch.int32)}  # fmt: skip

    return tf.MiniCPMV4_6ForConditionalGeneration(config), pixels


def _granite4_vision() -> tuple[Any, Pixels]:
    """Its rows are added before layers of the LLM, none stands in the prompt."""
    config = tf.Granite4VisionConfig(
        vision_config=siglip() | {"hidden_size": 128}, text_config=llm("granite4_vision_text"),
        image_token_index=IMAGE, vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS, downsample_rate="1/2", deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1, 1, 2, 2],
    )  # fmt: skip
    return tf.Granite4VisionForConditionalGeneration(config), anyres


def _fuyu() -> tuple[Any, Pixels]:
    config = tf.FuyuConfig(
        text_config=llm("persimmon", num_key_value_heads=4), image_token_id=IMAGE, patch_size=4,
        image_size=24,
    )  # fmt: skip

    def pixels(n: list[int]) -> dict[str, torch.Tensor]:
        return {"image_patches": torch.stack([noise(9, 48, seed=i) for i in range(sum(n))])}

    return tf.FuyuForCausalLM(config), pixels
