"""Tiny models of several families with real processors of theirs, made without a download."""

from __future__ import annotations

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from families.tiny import BEGIN, END, IMAGE, PINPOINTS, VIDEO, build
from tokensieve.hf.models.loaded import Loaded

NAMED = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", IMAGE: "<image>", VIDEO: "<video>",
         BEGIN: "<begin>", END: "<end>"}  # fmt: skip


def tokenizer(**names: str) -> tf.PreTrainedTokenizerFast:
    words = Tokenizer(
        models.WordLevel({NAMED.get(i, f"w{i}"): i for i in range(200)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", additional_special_tokens=list(NAMED.values())[4:],
        padding_side="left", **({"extra_special_tokens": names} if names else {}),
    )  # fmt: skip


def llava_next() -> Loaded:
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24},
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    processor = tf.LlavaNextProcessor(
        pictures, tokenizer(), patch_size=6, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return Loaded("next", build("llava_next").model, processor)


def llava_siglip() -> Loaded:
    torch.manual_seed(0)
    config = tf.LlavaConfig(
        vision_config=build("paligemma").model.config.vision_config.to_dict(),
        text_config=build("llava").model.config.text_config,
        image_token_id=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = tf.LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 24, "width": 24}), tokenizer(), patch_size=6,
        vision_feature_select_strategy="full", num_additional_image_tokens=0,
    )  # fmt: skip
    return Loaded("siglip", tf.LlavaForConditionalGeneration(config).eval(), processor)


def internvl() -> Loaded:
    pictures = GotOcr2ImageProcessorPil(
        size={"height": 24, "width": 24}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    words = tokenizer(
        start_image_token="<begin>", end_image_token="<end>", context_image_token="<image>",
        video_token="<video>",
    )  # fmt: skip
    processor = tf.InternVLProcessor(pictures, words, None, image_seq_length=16)
    return Loaded("internvl", build("internvl").model, processor)


def qwen() -> Loaded:
    pictures = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=4096
    )
    words = tokenizer(image_token="<image>", video_token="<video>")
    processor = tf.Qwen2_5_VLProcessor(pictures, words, None)
    return Loaded("qwen", build("qwen2_5_vl").model, processor)


MAKERS = {"next": llava_next, "siglip": llava_siglip, "internvl": internvl, "qwen": qwen}
