"""Tiny random models of many VLM families, and inputs as their processors would give them.

`build("llava")` gives a `Tiny`: `.model`, and `.inputs([1, 2])` for two prompts of 1 and 2
pictures, padded on the left.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as tf
from packaging.version import Version

from families.more import MORE
from families.parts import (
    BEGIN,
    END,
    IMAGE,
    PAD,
    PINPOINTS,
    SYSTEM,
    VIDEO,
    Pixels,
    anyres,
    clip,
    llm,
    mistral,
    mrope,
    padded,
    patches,
    pixtral,
    qwen,
    siglip,
    square,
    tiles,
    vit,
)  # fmt: skip
from tokensieve.hf.fused import FusedLlavaConfig, FusedLlavaForConditionalGeneration


def _llava() -> tuple[Any, Pixels]:
    config = tf.LlavaConfig(vision_config=clip(), text_config=llm(), image_token_id=IMAGE)
    return tf.LlavaForConditionalGeneration(config), square


def _vipllava() -> tuple[Any, Pixels]:
    parts = {"vision_config": clip(), "text_config": llm()}
    config = tf.VipLlavaConfig(**parts, image_token_id=IMAGE, vision_feature_layers=[-2, -1])
    return tf.VipLlavaForConditionalGeneration(config), square


def _pixtral_llava() -> tuple[Any, Pixels]:
    config = tf.LlavaConfig(
        vision_config=pixtral(),
        text_config=mistral(),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaForConditionalGeneration(config), padded


def _mistral3() -> tuple[Any, Pixels]:
    config = tf.Mistral3Config(
        vision_config=pixtral(),
        text_config=mistral(),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )
    return tf.Mistral3ForConditionalGeneration(config), padded


def _llava_next() -> tuple[Any, Pixels]:
    parts = {"vision_config": clip(), "text_config": llm(), "image_token_id": IMAGE}
    config = tf.LlavaNextConfig(**parts, image_grid_pinpoints=PINPOINTS)
    return tf.LlavaNextForConditionalGeneration(config), anyres


def _llava_onevision() -> tuple[Any, Pixels]:
    config = tf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=llm("qwen2"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), anyres


def _internvl() -> tuple[Any, Pixels]:
    vision = vit("internvl_vision") | {"image_size": [24, 24], "patch_size": [3, 3]}
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=llm("qwen2"),
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    return tf.InternVLForConditionalGeneration(config), square


def _qwen2_vl() -> tuple[Any, Pixels]:
    vision = {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}
    config = tf.Qwen2VLConfig(text_config=mrope("qwen2_vl_text"), **qwen(vision))
    return tf.Qwen2VLForConditionalGeneration(config), patches


def _qwen2_5_vl() -> tuple[Any, Pixels]:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    config = tf.Qwen2_5_VLConfig(text_config=mrope("qwen2_5_vl_text"), **qwen(vision))
    return tf.Qwen2_5_VLForConditionalGeneration(config), patches


def _qwen3_vl() -> tuple[Any, Pixels]:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"deepstack_visual_indexes": [1], "num_position_embeddings": 64}
    config = tf.Qwen3VLConfig(text_config=mrope("qwen3_vl_text", head_dim=8), **qwen(vision))
    return tf.Qwen3VLForConditionalGeneration(config), patches


def _idefics3() -> tuple[Any, Pixels]:
    vision = vit("idefics3_vision", 3)
    config = tf.Idefics3Config(
        vision_config=vision,
        text_config=llm(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return tf.Idefics3ForConditionalGeneration(config), tiles


def _smolvlm() -> tuple[Any, Pixels]:
    config = tf.SmolVLMConfig(
        vision_config=vit("smolvlm_vision", 3),
        text_config=llm(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return tf.SmolVLMForConditionalGeneration(config), tiles


def _gemma3() -> tuple[Any, Pixels]:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = tf.Gemma3Config(
        vision_config=siglip(3),
        text_config=llm("gemma3_text", head_dim=8, sliding_window=512, layer_types=kinds),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        mm_tokens_per_image=16,
    )
    return tf.Gemma3ForConditionalGeneration(config), square


def _paligemma() -> tuple[Any, Pixels]:
    config = tf.PaliGemmaConfig(
        vision_config=siglip(),
        text_config=llm("gemma", head_dim=8, num_key_value_heads=1),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return tf.PaliGemmaForConditionalGeneration(config), square


def _fused(vision: dict[str, Any], blocks: int | list[int], **more: Any) -> tuple[Any, Pixels]:
    cls = vision["model_type"] != "siglip_vision_model"
    config = FusedLlavaConfig(
        vision_config=vision,
        text_config=llm(),
        image_token_index=IMAGE,
        vision_feature_layer=blocks,
        vision_feature_select_strategy="default" if cls else "full",
        **more,
    )
    return FusedLlavaForConditionalGeneration(config), square


def _fused_llava() -> tuple[Any, Pixels]:
    return _fused(clip() | {"patch_size": 3}, [1, 3, -2])


def _fused_siglip() -> tuple[Any, Pixels]:
    """Two tokens of a cell: tokens without a grid."""
    return _fused(siglip(3), -1, fusion_fused=2, fusion_form="release")


def _fused_internvl() -> tuple[Any, Pixels]:
    vision = vit("internvl_vision") | {"image_size": [24, 24], "patch_size": [3, 3]}
    return _fused(vision, [1, -1], fusion_kind="avgpool")


_BUILDERS = {
    builder.__name__[1:]: builder
    for builder in (
        _llava, _llava_next, _qwen2_5_vl, _vipllava, _pixtral_llava, _mistral3, _llava_onevision,
        _internvl, _qwen2_vl, _qwen3_vl, _idefics3, _smolvlm, _gemma3, _paligemma, _fused_llava,
        _fused_siglip, _fused_internvl,
    )
}  # fmt: skip
if Version(tf.__version__) < Version("5.21"):
    del _BUILDERS["smolvlm"]  # not exact before that release
NAMES = tuple(_BUILDERS)
REQUIRED = ("llava", "llava_next", "qwen2_5_vl", "fused_llava")


@dataclass(frozen=True)
class Tiny:
    """A tiny model and what its processor would give."""

    name: str
    model: Any
    pixels: Pixels
    counted: dict[tuple[int, ...], list[int]] = field(default_factory=dict, init=False)

    def rows(self, pictures: list[int]) -> list[int]:
        """Visual rows of each picture, counted once."""
        if tuple(pictures) not in self.counted:
            self.counted[tuple(pictures)] = self._count(pictures)
        return [*self.counted[tuple(pictures)]]

    def _count(self, pictures: list[int]) -> list[int]:
        encoder = self.model.base_model.get_image_features
        wanted = inspect.signature(encoder).parameters
        arguments = {k: v for k, v in self.pixels(pictures).items() if k in wanted}
        with torch.no_grad():
            items = encoder(**arguments, return_dict=True).pooler_output
        counts = [item.reshape(-1, item.shape[-1]).shape[0] for item in items]
        if len(counts) < sum(pictures):  # Idefics3 and SmolVLM: one item per prompt
            return [count // n for count, n in zip(counts, pictures, strict=True) for _ in range(n)]
        return counts

    def inputs(
        self, pictures: list[int], text: tuple[int, ...] = (5, 9), system: tuple[int, ...] = SYSTEM
    ) -> dict[str, Any]:
        """Prompts of so many pictures and text tokens behind them each, padded on the left."""
        rows, generator = iter(self.rows(pictures)), torch.Generator().manual_seed(3)
        prompts = []
        for b, n in enumerate(pictures):
            ids = [1, 2, *system]
            for _ in range(n):
                words = torch.randint(3, 140, (2,), generator=generator).tolist()
                ids += [BEGIN, *[IMAGE] * next(rows), END, *words]
            count = text[b % len(text)]
            prompts.append(ids + torch.randint(3, 140, (count,), generator=generator).tolist())
        S = max(map(len, prompts))
        ids_BS = torch.tensor([[PAD] * (S - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (S - len(p)) + [1] * len(p) for p in prompts])
        out = {"input_ids": ids_BS, "attention_mask": mask, **self.pixels(pictures)}
        return out | self.types(ids_BS)

    def types(self, ids_BS: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a processor says of each token besides."""
        picture_BS = ids_BS == IMAGE
        if self.name in MORE:
            takes = inspect.signature(type(self.model).forward).parameters
            named = ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")
            return {name: picture_BS.int() for name in named if name in takes}
        if "qwen" in self.name:
            return {"mm_token_type_ids": picture_BS.int()}
        if self.name == "gemma3":
            return {"token_type_ids": picture_BS.long()}
        return {"token_type_ids": torch.zeros_like(ids_BS)} if self.name == "paligemma" else {}


def question_of(name: str, inputs: dict[str, Any]) -> torch.Tensor:
    """(B, S) what is asked in prompts of `Tiny.inputs`: behind the last picture, no padding, and of
    Qwen, whose config names it, not the token that ends a picture."""
    asked = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for b, row in enumerate(inputs["input_ids"].tolist()):
        last = max((i for i, token in enumerate(row) if token == IMAGE), default=-1)
        for i in range(last + 1, len(row)):
            real = bool(inputs["attention_mask"][b, i])
            asked[b, i] = real and row[i] > 2 and not ("qwen" in name and row[i] == END)
    return asked


@cache
def build(name: str, attention: str = "sdpa") -> Tiny:
    """The tiny model `name`, its weights drawn so that attention matters."""
    torch.manual_seed(0)
    model, pixels = {**_BUILDERS, **MORE}[name]()
    generator = torch.Generator().manual_seed(11)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 1.0 if "embed_tokens" in key else 2.0 / weight.shape[-1] ** 0.5
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    model.eval().set_attn_implementation(attention)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return Tiny(name, model, pixels)
