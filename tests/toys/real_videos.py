"""Tiny models of the families with videos and the real processors of theirs; wants torchvision."""

from __future__ import annotations

from typing import Any

import transformers as tf

from families.tiny import PINPOINTS, build
from families.videos import build_video
from tokensieve.hf.models.loaded import Loaded
from toys.real_processors import tokenizer

SQUARE = {"height": 24, "width": 24}
CROPPED = {"size": {"shortest_edge": 24}, "crop_size": SQUARE}
PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
AREA = {"shortest_edge": 64, "longest_edge": 4096}
NAMES = {"image_token": "<image>", "video_token": "<video>"}
CLIP = {"patch_size": 6, "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1, **NAMES}  # fmt: skip
TEMPLATE = (
    "{% for c in messages[0]['content'] %}{{ c['text'] if c['type'] == 'text' else "
    "'<begin> <' + c['type'] + '> <end>' }} {% endfor %}"
)


def _qwen(kind: Any, videos: Any) -> Any:
    pictures = tf.Qwen2VLImageProcessor(min_pixels=64, max_pixels=4096, **PATCHES)
    words = tokenizer(**NAMES, vision_start_token="<begin>", vision_end_token="<end>")
    return kind(pictures, words, videos(size=AREA, **PATCHES))


def _onevision() -> Any:
    pictures = tf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS)
    videos = tf.LlavaOnevisionVideoProcessor(size=SQUARE)
    return tf.LlavaOnevisionProcessor(
        pictures, tokenizer(**NAMES), videos, num_image_tokens=16,
        vision_feature_select_strategy="full", **NAMES,
    )  # fmt: skip


def _next_video() -> Any:
    pictures = tf.LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CROPPED)
    videos = tf.LlavaNextVideoVideoProcessor(**CROPPED)
    return tf.LlavaNextVideoProcessor(videos, pictures, tokenizer(**NAMES), **CLIP)


def _video_llava() -> Any:
    pictures, videos = (
        tf.VideoLlavaImageProcessor(**CROPPED),
        tf.VideoLlavaVideoProcessor(**CROPPED),
    )
    return tf.VideoLlavaProcessor(pictures, videos, tokenizer(**NAMES), **CLIP)


def _video_llama_3() -> Any:
    pictures = tf.VideoLlama3ImageProcessor(patch_size=4, min_pixels=64, max_pixels=4096)
    videos = tf.VideoLlama3VideoProcessor(patch_size=4, size=AREA)
    return tf.VideoLlama3Processor(pictures, tokenizer(**NAMES), videos)


def _internvl() -> Any:
    """Frames as pictures."""
    words = tokenizer(
        start_image_token="<begin>", end_image_token="<end>", context_image_token="<image>",
        video_token="<video>",
    )  # fmt: skip
    pictures = tf.GotOcr2ImageProcessor(
        size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4
    )
    videos = tf.InternVLVideoProcessor(size=SQUARE)
    return tf.InternVLProcessor(pictures, words, videos, image_seq_length=16)


PROCESSORS = {
    "qwen2_vl": lambda: _qwen(tf.Qwen2VLProcessor, tf.Qwen2VLVideoProcessor),
    "qwen2_5_vl": lambda: _qwen(tf.Qwen2_5_VLProcessor, tf.Qwen2VLVideoProcessor),
    "qwen3_vl": lambda: _qwen(tf.Qwen3VLProcessor, tf.Qwen3VLVideoProcessor),
    "llava_onevision": _onevision, "llava_next_video": _next_video, "video_llava": _video_llava,
    "video_llama_3": _video_llama_3, "internvl": _internvl,
}  # fmt: skip


def real_videos(name: str) -> Loaded:
    """The tiny model `name` and its processor of pictures and videos."""
    processor = PROCESSORS[name]()
    bare = TEMPLATE.replace("<begin>", "").replace("<end>", "")
    processor.chat_template = bare if name == "internvl" else TEMPLATE
    own = name in ("llava_next_video", "video_llava", "video_llama_3")
    return Loaded(name, (build_video if own else build)(name).model, processor)
