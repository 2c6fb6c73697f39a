"""A random LLaVA of nano's shape in small, with a processor, for the evaluation's tests."""

from __future__ import annotations

from functools import cache
from string import ascii_letters, digits

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tokensieve.data.synth import COLOURS, PLACES, SHAPES
from tokensieve.evaluate.subject import Subject

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@cache
def tiny_processor() -> LlavaProcessor:
    """Words and characters of the generator's questions and answers, 16 x 16 tokens a picture."""
    pieces = pre_tokenizers.Split(Regex(r"<image>|[A-Za-z]{3,}|\S"), "isolated")
    places = [word for place in PLACES for word in place.split()]
    words = ["<pad>", "<eos>", "<unk>", "<image>", ">", *ascii_letters, *digits, *".,:?'"]
    words += [*COLOURS, *SHAPES, *places]
    seen = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(seen, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left",
    )  # fmt: skip
    images = CLIPImageProcessorPil(
        size={"height": 192, "width": 192}, do_center_crop=False, do_convert_rgb=True
    )
    return LlavaProcessor(
        images, fast, patch_size=12, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip


def tiny_subject(width: int = 32, layers: int = 2, seed: int = 0) -> Subject:
    """A random model and its processor."""
    processor = tiny_processor()
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, image_size=192, patch_size=12,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(processor.tokenizer), hidden_size=width, intermediate_size=11 * width // 4,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 1
    return Subject(model, processor)
