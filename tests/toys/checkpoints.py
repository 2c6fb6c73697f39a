"""Tiny checkpoints on disk of the families in `families.tiny`: weights, and processor, tokenizer
and chat template of the family's own classes, made without a download.

Left out are those whose processors want torchvision even for pictures (Pixtral and Mistral 3,
Cohere2-Vision, LFM2-VL, Kimi-K2.5, Perception-LM, FastVLM, Molmo2, MiniCPM-V, Video-LLaVA), sound
(Qwen2.5-Omni), num2words (SmolVLM), or count tokens of full-size pictures by constants (GOT-OCR2,
Aria).

One table: of each family its processor, its image processor with settings that fit the tiny tower,
its special tokens and what its chat template shows of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from families.parts import BEGIN, END, IMAGE, PAD, PINPOINTS, VIDEO, VOCAB
from families.tiny import build
from tokensieve.hf.models.processors import pictures_only
from tokensieve.nn.pretrained import write_json

TALK = (
    "{%% for m in messages %%}w7 {{ m['role'] }} {%% for c in m['content'] %%}"
    "{%% if c['type'] == 'image' %%}%s {%% else %%}{{ c['text'] }} {%% endif %%}{%% endfor %%}"
    "{%% endfor %%}{%% if add_generation_prompt %%}w8 {%% endif %%}"
)


@dataclass(frozen=True)
class Parts:
    """A family's processor. image, video, begin, end: its special tokens at the ids that the tiny
    configs know; more: further ones; named: those the tokenizer knows by a name; shown: what the
    chat template shows of a picture."""

    processor: str
    pictures: str  # "MODULE:CLASS" of the image processor
    settings: dict[str, Any]
    image: str = "<image>"
    video: str = "<video>"
    begin: str = "<begin>"
    end: str = "<end>"
    more: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # of the processor
    shown: str = "{image}"
    videos: bool = False  # takes a processor of videos, which wants torchvision


SQUARE = {"size": {"height": 24, "width": 24}}
CROP = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
LLAVA = {"patch_size": 6, "vision_feature_select_strategy": "default"}
ONE_CLS = {**LLAVA, "num_additional_image_tokens": 1}
QWEN = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 4096}}  # fmt: skip
PAD_NAMES = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_WORDS: dict[str, Any] = {
    "image": "<|image_pad|>", "video": "<|video_pad|>", "begin": "<|vision_start|>",
    "end": "<|vision_end|>", "named": PAD_NAMES, "videos": True,
    "shown": "<|vision_start|>{image}<|vision_end|>",
}  # fmt: skip
PIXTRAL = {"patch_size": 3, "size": {"longest_edge": 36}}
ROWS = tuple(f"<row_{i}_col_{j}>" for i in range(1, 3) for j in range(1, 3))
FAKE = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *ROWS)
GLM: dict[str, Any] = {
    "image": "<|image|>", "video": "<|video|>", "begin": "<|begin_of_image|>",
    "end": "<|end_of_image|>", "named": {"image_token": "<|image|>", "video_token": "<|video|>"},
    "videos": True, "shown": "<|begin_of_image|>{image}<|end_of_image|>",
}  # fmt: skip
TILES = {**SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}

FAMILIES: dict[str, Parts] = {
    "llava": Parts("LlavaProcessor", "clip:CLIPImageProcessorPil", CROP, options=ONE_CLS),
    "vipllava": Parts("LlavaProcessor", "clip:CLIPImageProcessorPil", CROP, options=ONE_CLS),
    "llava_next": Parts(
        "LlavaNextProcessor", "llava_next:LlavaNextImageProcessorPil",
        {**CROP, "image_grid_pinpoints": PINPOINTS}, options=ONE_CLS,
    ),
    "llava_next_video": Parts(
        "LlavaNextVideoProcessor", "llava_next:LlavaNextImageProcessorPil",
        {**CROP, "image_grid_pinpoints": PINPOINTS}, options=ONE_CLS, videos=True,
    ),
    "llava_onevision": Parts(
        "LlavaOnevisionProcessor", "llava_onevision:LlavaOnevisionImageProcessorPil",
        {**SQUARE, "image_grid_pinpoints": PINPOINTS}, videos=True,
        options={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "lighton_ocr": Parts(
        "LightOnOcrProcessor", "pixtral:PixtralImageProcessorPil", PIXTRAL, image="<|image_pad|>",
        begin="<|vision_pad|>", end="<|vision_end|>", shown="{image}",
        named={"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>",
               "image_end_token": "<|vision_end|>"},
        options={"patch_size": 3, "spatial_merge_size": 2},
    ),
    "internvl": Parts(
        "InternVLProcessor", "got_ocr2:GotOcr2ImageProcessorPil", TILES, image="<IMG_CONTEXT>",
        begin="<img>", end="</img>", options={"image_seq_length": 16}, videos=True,
        named={"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>",
               "context_image_token": "<IMG_CONTEXT>"},
    ),
    "qwen2_vl": Parts("Qwen2VLProcessor", "qwen2_vl:Qwen2VLImageProcessorPil", QWEN, **QWEN_WORDS),
    "qwen2_5_vl": Parts(
        "Qwen2_5_VLProcessor", "qwen2_vl:Qwen2VLImageProcessorPil", QWEN, **QWEN_WORDS
    ),
    "qwen3_vl": Parts("Qwen3VLProcessor", "qwen2_vl:Qwen2VLImageProcessorPil", QWEN, **QWEN_WORDS),
    "qwen3_vl_moe": Parts(
        "Qwen3VLProcessor", "qwen2_vl:Qwen2VLImageProcessorPil", QWEN, **QWEN_WORDS
    ),
    "qwen3_5": Parts("Qwen3VLProcessor", "qwen2_vl:Qwen2VLImageProcessorPil", QWEN, **QWEN_WORDS),
    "exaone4_5": Parts(
        "Exaone4_5_Processor", "qwen2_vl:Qwen2VLImageProcessorPil", QWEN, **QWEN_WORDS
    ),
    "idefics2": Parts(
        "Idefics2Processor", "idefics2:Idefics2ImageProcessorPil",
        {"size": {"shortest_edge": 24, "longest_edge": 24}, "do_image_splitting": False},
        more=FAKE, options={"image_seq_len": 8},
    ),
    "idefics3": Parts(
        "Idefics3Processor", "idefics3:Idefics3ImageProcessorPil",
        {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}, more=FAKE,
        options={"image_seq_len": 16},
    ),
    "gemma3": Parts(
        "Gemma3Processor", "gemma3:Gemma3ImageProcessorPil", SQUARE, image="<image_soft_token>",
        begin="<start_of_image>", end="<end_of_image>", options={"image_seq_length": 16},
        named={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
               "eoi_token": "<end_of_image>"}, shown="<start_of_image>",
    ),
    "gemma4": Parts(
        "Gemma4Processor", "gemma4:Gemma4ImageProcessorPil",
        {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 2}, image="<|image|>",
        begin="<|image>", end="<image|>", video="<|video|>", videos=True,
        named={"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
               "audio_token": "<a>", "boa_token": "<b>", "eoa_token": "<c>"},
        more=("<a>", "<b>", "<c>"),
    ),
    "paligemma": Parts(
        "PaliGemmaProcessor", "siglip:SiglipImageProcessorPil", {**SQUARE, "image_seq_length": 16}
    ),
    "aya_vision": Parts(
        "AyaVisionProcessor", "got_ocr2:GotOcr2ImageProcessorPil", TILES, image="<|IMG_PATCH|>",
        begin="<|START_OF_IMG|>", end="<|END_OF_IMG|>",
        more=("<image>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"), shown="<image>",
        options={"patch_size": 3, "img_size": 24, "downsample_factor": 2},
    ),
    "glm4v": Parts("Glm4vProcessor", "glm4v:Glm4vImageProcessorPil", QWEN, **GLM),
    "glm4v_moe": Parts("Glm4vProcessor", "glm4v:Glm4vImageProcessorPil", QWEN, **GLM),
    "glm46v": Parts("Glm46VProcessor", "glm46v:Glm46VImageProcessorPil", QWEN, **GLM),
    "glm_ocr": Parts("Glm46VProcessor", "glm46v:Glm46VImageProcessorPil", QWEN, **GLM),
    "deepseek_vl": Parts(
        "DeepseekVLProcessor", "deepseek_vl:DeepseekVLImageProcessorPil", SQUARE,
        named={"image_token": "<image>"}, options={"num_image_tokens": 16},
    ),
    "janus": Parts(
        "JanusProcessor", "janus:JanusImageProcessorPil", SQUARE,
        named={"image_token": "<image>", "boi_token": "<begin>", "eoi_token": "<end>"},
        options={"num_image_tokens": 16},
    ),
    "ovis2": Parts(
        "Ovis2Processor", "ovis2:Ovis2ImageProcessorPil", SQUARE, begin="<IMG_START>",
        image="<IMG_ATOM>", end="<IMG_END>", shown="<image>",
        more=("<image>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>"), options={"image_seq_length": 16},
    ),
    "ernie4_5_vl": Parts(
        "Ernie4_5_VLMoeProcessor", "ernie4_5_vl_moe:Ernie4_5_VLMoeImageProcessorPil",
        {**QWEN, "temporal_patch_size": 1}, image="<|IMAGE_PLACEHOLDER|>",
        begin="<|IMAGE_START|>", end="<|IMAGE_END|>", videos=True,
        named={"image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>",
               "image_end_token": "<|IMAGE_END|>", "video_token": "<video>",
               "video_start_token": "<v>", "video_end_token": "</v>"}, more=("<v>", "</v>"),
        shown="<|IMAGE_START|>{image}<|IMAGE_END|>",
    ),
    "paddleocr_vl": Parts(
        "PaddleOCRVLProcessor", "paddleocr_vl:PaddleOCRVLImageProcessorPil",
        {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 1,
         "size": {"shortest_edge": 64, "longest_edge": 4096}},
        image="<|IMAGE_PLACEHOLDER|>", begin="<|IMAGE_START|>", end="<|IMAGE_END|>",
        named={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        shown="<|IMAGE_START|>{image}<|IMAGE_END|>",
    ),
    "hunyuan_vl": Parts(
        "HunYuanVLProcessor", "hunyuan_vl:HunYuanVLImageProcessorPil",
        {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 1,
         "size": {"shortest_edge": 64, "longest_edge": 4096}},
        named={"image_token": "<image>", "image_start_token": "<begin>",
               "image_end_token": "<end>"}, shown="<begin>{image}<end>",
    ),
    "video_llama_3": Parts(
        "VideoLlama3Processor", "video_llama_3:VideoLlama3ImageProcessorPil",
        {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 1,
         "size": {"shortest_edge": 64, "longest_edge": 4096}},
        named={"image_token": "<image>", "video_token": "<video>"}, videos=True,
    ),
}  # fmt: skip


def tokenizer(parts: Parts) -> Any:
    """Words w0 to w149 and the special tokens, at the ids of the tiny configs."""
    names = {PAD: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", IMAGE: parts.image, VIDEO: parts.video,
             BEGIN: parts.begin, END: parts.end}  # fmt: skip
    names |= {154 + i: name for i, name in enumerate(parts.more)}
    words = Tokenizer(
        models.WordLevel({names.get(i, f"w{i}"): i for i in range(VOCAB)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [name for i, name in sorted(names.items()) if i > 3]
    build_: Any = tf.PreTrainedTokenizerFast
    return build_(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", additional_special_tokens=special, padding_side="left",
        **({"extra_special_tokens": parts.named} if parts.named else {}),
    )  # fmt: skip


def processor(name: str) -> Any:
    """The processor of a family, of its own classes."""
    parts = FAMILIES[name]
    module, _, kind = parts.pictures.partition(":")
    module = f"transformers.models.{module}.image_processing_pil_{module}"
    pictures = getattr(import_module(module), kind)(**parts.settings)
    kind_: Any = getattr(tf, parts.processor)
    if parts.videos:
        kind_ = pictures_only(kind_)
    template = TALK % parts.shown.format(image=parts.image)
    rest = dict.fromkeys(set(kind_.get_attributes()) - {"image_processor", "tokenizer"})
    return kind_(
        image_processor=pictures, tokenizer=tokenizer(parts), chat_template=template,
        **rest, **parts.options,
    )  # fmt: skip


def save(name: str, folder: Path) -> Path:
    """A checkpoint of the family `name` in `folder`, as `save_pretrained` lays it out."""
    model, made = build(name).model, processor(name)
    model.save_pretrained(folder)
    if not FAMILIES[name].videos:
        made.save_pretrained(folder)
        return folder
    made.image_processor.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(made.chat_template, "utf-8")
    settings = {**FAMILIES[name].options, "processor_class": FAMILIES[name].processor}
    write_json(folder / "processor_config.json", settings)
    return folder
