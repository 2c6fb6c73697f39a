"""Tiny checkpoints of families, with random weights and processors of their own, that both vLLM and
Transformers read. Larger than `families.tiny`: vLLM's attention wants heads of 32."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from tokensieve.hf.models.loaded import Loaded

WORDS = 120
SPECIAL = (
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<img>", "</img>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
)  # fmt: skip
ID = {name: i for i, name in enumerate(SPECIAL)}
VOCAB = len(SPECIAL) + WORDS
SIDE, PATCH = 48, 8  # of a picture's crop and of a patch, in pixels: 36 patches
PINPOINTS = [[48, 96], [96, 48], [96, 96]]


def tokenizer(**special: str) -> Any:
    """Words w0 to w119, split at spaces. special: further names of special tokens."""
    names = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(SPECIAL))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=special,
    )  # fmt: skip


def llm(kind: str = "llama", **extra: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCAB}
    return {"model_type": kind, "tie_word_embeddings": False, **sizes, **heads, **ids, **extra}


def vit(kind: str, **extra: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    size = {"image_size": SIDE, "patch_size": PATCH, "num_attention_heads": 2}
    return {"model_type": kind, **sizes, **size, **extra}


CROP = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}


def llava_next() -> tuple[Any, Any]:
    config = tf.LlavaNextConfig(
        vision_config=vit("clip_vision_model", projection_dim=16), text_config=llm(),
        image_token_id=ID["<image>"], image_grid_pinpoints=PINPOINTS,
        image_seq_length=(SIDE // PATCH) ** 2, tie_word_embeddings=False,
    )  # fmt: skip
    processor = tf.LlavaNextProcessor(
        tf.LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CROP), tokenizer(),
        patch_size=PATCH, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return tf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    config = tf.LlavaOnevisionConfig(
        vision_config=vit("siglip_vision_model", vision_use_head=False), text_config=llm("qwen2"),
        image_token_id=ID["<image>"], video_token_id=ID["<video>"], tie_word_embeddings=False,
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    processor = tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(image_grid_pinpoints=PINPOINTS, **SQUARE), tokenizer(),
        tf.LlavaOnevisionVideoProcessor(**SQUARE), num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    vision = vit("internvl_vision") | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    config = tf.InternVLConfig(
        vision_config=vision, text_config=llm("qwen2"), image_token_id=ID["<image>"],
        image_seq_length=9, tie_word_embeddings=False,
    )  # fmt: skip
    names = {"start_image_token": "<img>", "end_image_token": "</img>"}
    names |= {"context_image_token": "<image>", "video_token": "<video>"}
    processor = tf.InternVLProcessor(
        tf.GotOcr2ImageProcessor(crop_to_patches=True, max_patches=4, **SQUARE), tokenizer(**names),
        tf.InternVLVideoProcessor(**SQUARE), image_seq_length=9,
    )  # fmt: skip
    return tf.InternVLForConditionalGeneration(config), processor


def _idefics(name: str, kind: str) -> tuple[Any, Any]:
    config = getattr(tf, f"{name}Config")(
        vision_config=vit(kind), text_config=llm(), image_token_id=ID["<image>"], scale_factor=2,
        pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    size = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    processor = getattr(tf, f"{name}Processor")(
        getattr(tf, f"{name}ImageProcessor")(**size), tokenizer(), image_seq_len=9,
        **({"video_processor": tf.SmolVLMVideoProcessor()} if name == "SmolVLM" else {}),
    )  # fmt: skip
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def idefics3() -> tuple[Any, Any]:
    return _idefics("Idefics3", "idefics3_vision")


def smolvlm() -> tuple[Any, Any]:
    return _idefics("SmolVLM", "smolvlm_vision")


def build(name: str) -> Loaded:
    """A model whose answer changes with each token that is kept, and its processor."""
    torch.manual_seed(0)
    model, processor = globals()[name]()
    generator = torch.Generator().manual_seed(11)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 1.0 if "embed_tokens" in key else 2.0 / weight.shape[-1] ** 0.5
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    model.eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    return Loaded(name, model, processor)
