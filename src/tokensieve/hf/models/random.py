"""Small VLMs with random weights, saved to disk with their processors.

To try extraction, training and sieves on towers that are not CLIP, without a download:
`python -m tokensieve.hf.models.random qwen FOLDER`. They answer nothing; what a selector learns of
their features is real all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tokensieve.errors import UnknownNameError
from tokensieve.files import written_folder
from tokensieve.folders import Kind, check_ours, told_in
from tokensieve.hf.models.processors import pictures_only
from tokensieve.nn.pretrained import write_json

SIDE, TOKEN = 192, 12  # pixels of a picture's side and of a token's
WIDTH, LAYERS, HEADS = 96, 4, 4
KIND = Kind("a random model", told_in("processor_config.json", "processor_class"), own=True)
_WORDS = {
    "image_token": "<image>", "start_image_token": "<img>", "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>", "pad": "<pad>",
    "eos": "</s>", "unk": "<unk>", "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>", "image_pad": "<|image_pad|>", "video_pad": "<|video_pad|>",
}  # fmt: skip


def save_random_model(name: str, folder: str | Path, seed: int = 0) -> Path:
    """A VLM of the kind `name`, one of `RANDOM_MODELS`, in `folder`.

    Raises `UnknownNameError`, and `ConfigError` for a folder that holds anything else.

    "siglip": LLaVA around a SigLIP tower; "internvit": InternVL, tiles and pixel-shuffle;
    "qwen": Qwen2.5-VL, window attention, 2 x 2 merger, pictures of any size.
    """
    if name not in RANDOM_MODELS:
        raise UnknownNameError.of("random model", name, RANDOM_MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = RANDOM_MODELS[name]()
    folder = Path(folder)
    check_ours(folder, KIND)
    kept = {"patch_size", "vision_feature_select_strategy", "num_additional_image_tokens",
            "image_seq_length"} & vars(processor).keys()  # fmt: skip
    settings = {name: getattr(processor, name) for name in sorted(kept)}
    settings["processor_class"] = type(processor).__name__
    with written_folder(folder) as part:
        model.save_pretrained(part)
        processor.image_processor.save_pretrained(part)
        processor.tokenizer.save_pretrained(part)
        write_json(part / "processor_config.json", settings)
    return folder


def _tokenizer(**named: str) -> Any:
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(_WORDS.values())}, _WORDS["unk"])
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    build: Any = PreTrainedTokenizerFast  # untyped in Transformers
    return build(
        tokenizer_object=words, pad_token=_WORDS["pad"], eos_token=_WORDS["eos"],
        unk_token=_WORDS["unk"], additional_special_tokens=list(_WORDS.values()),
        extra_special_tokens=named,
    )  # fmt: skip


def _text(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind, "vocab_size": len(_WORDS), "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": _id("eos"), **more,
    }  # fmt: skip


def _id(name: str) -> int:
    return list(_WORDS).index(name)


def _siglip() -> tuple[Any, Any]:
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "image_size": SIDE,
        "patch_size": TOKEN, "vision_use_head": False,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=_text("llama"), image_token_index=_id("image_token"),
        vision_feature_select_strategy="full", vision_feature_layer=-1,
        image_seq_length=(SIDE // TOKEN) ** 2,
    )  # fmt: skip
    processor: Any = LlavaProcessor
    return LlavaForConditionalGeneration(config), processor(
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        _tokenizer(image_token=_WORDS["image_token"]),
        patch_size=TOKEN, vision_feature_select_strategy="full", num_additional_image_tokens=0,
    )  # fmt: skip


def _internvit() -> tuple[Any, Any]:
    vision = {
        "model_type": "internvl_vision", "hidden_size": WIDTH // 2, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "image_size": [SIDE, SIDE], "patch_size": [TOKEN // 2, TOKEN // 2],
    }  # fmt: skip
    length = (SIDE // TOKEN) ** 2
    config = InternVLConfig(
        vision_config=vision, text_config=_text("qwen2"),
        image_token_id=_id("context_image_token"), image_seq_length=length, downsample_ratio=0.5,
    )  # fmt: skip
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    processor = pictures_only(InternVLProcessor)
    return InternVLForConditionalGeneration(config), processor(
        GotOcr2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, crop_to_patches=True, min_patches=1,
            max_patches=4,
        ),
        _tokenizer(**{name: _WORDS[name] for name in names}), image_seq_length=length,
    )  # fmt: skip


def _qwen() -> tuple[Any, Any]:
    vision = {
        "depth": LAYERS, "hidden_size": WIDTH, "out_hidden_size": 64, "num_heads": HEADS,
        "intermediate_size": 2 * WIDTH, "patch_size": TOKEN // 2, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "window_size": 4 * TOKEN, "fullatt_block_indexes": [1, 3],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=_text("qwen2_5_vl_text", rope_parameters=rope),
        image_token_id=_id("image_pad"), video_token_id=_id("video_pad"),
        vision_start_token_id=_id("vision_start"), vision_end_token_id=_id("vision_end"),
    )  # fmt: skip
    processor = pictures_only(Qwen2_5_VLProcessor)
    return Qwen2_5_VLForConditionalGeneration(config), processor(
        Qwen2VLImageProcessorPil(
            patch_size=TOKEN // 2, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": TOKEN * TOKEN, "longest_edge": 4 * SIDE * SIDE},
        ),
        _tokenizer(image_token=_WORDS["image_pad"], video_token=_WORDS["video_pad"]),
    )  # fmt: skip


RANDOM_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "siglip": _siglip,
    "internvit": _internvit,
    "qwen": _qwen,
}


if __name__ == "__main__":
    save_random_model(sys.argv[1], sys.argv[2])
