"""A Llava from scratch around an encoder, and the folder it is shipped in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lab.nano.vocabulary import EOS, IMAGE, PAD
from tokensieve.files import write_text

MAX_POSITIONS = 4096
HALF = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Shape:
    """Sizes of the LLM: channels, layers, heads; `answer`, the most tokens it answers in."""

    width: int
    hidden: int
    layers: int
    heads: int
    answer: int


def llava(
    vision: CLIPVisionConfig, shape: Shape, table: Mapping[str, int]
) -> LlavaForConditionalGeneration:
    """The untrained model around an encoder of that shape; `table` has the ids of tokens.

    The feature is the encoder's last layer (`vision_feature_layer` -1) without CLS: there are only
    a few layers, and the labels were read from the last.
    """
    text = LlamaConfig(
        vocab_size=len(table),
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=table[PAD],
        bos_token_id=None,
        eos_token_id=table[EOS],
        tie_word_embeddings=False,
    )
    side, patch = cast(int, vision.image_size), cast(int, vision.patch_size)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=table[IMAGE],
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    eos, pad = table[EOS], table[PAD]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=eos, pad_token_id=pad, max_new_tokens=shape.answer, do_sample=False
    )
    return model


def image_processor(side: int) -> CLIPImageProcessorPil:
    """Squash any picture to `side` pixels square, scale it to -1..1 (no torchvision needed)."""
    size = {"height": side, "width": side}
    return CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=HALF, image_std=HALF
    )


def write_llava(
    folder: Path, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Model and processors, as Transformers reads them."""
    vision: Any = model.config.vision_config
    layout = {"patch_size": vision.patch_size, "vision_feature_select_strategy": "default"}
    layout |= {"processor_class": "LlavaProcessor", "num_additional_image_tokens": 1}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor(vision.image_size).save_pretrained(folder)
    write_text(folder / "processor_config.json", json.dumps(layout, indent=2) + "\n")
