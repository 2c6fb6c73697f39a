"""Tiny random models of many VLM families, and inputs as their processors would give them.

`build("llava")` gives a `Tiny`: `.model`, and `.inputs([1, 2])` for two prompts of 1 and 2
pictures, padded on the left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as tf
from packaging.version import Version

from tokensieve.hf.fused import FusedLlavaConfig, FusedLlavaForConditionalGeneration

VOCAB, IMAGE, VIDEO, PAD, BEGIN, END = 200, 150, 151, 0, 152, 153
SYSTEM = (31, 41, 59)  # words in front of the first picture, as a chat template's system prompt
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
SIZES = [[40, 24], [24, 60], [24, 24], [30, 48]]
GRIDS = [[1, 8, 4], [1, 4, 12], [1, 4, 4], [1, 12, 8]]
Pixels = Callable[[list[int]], dict[str, torch.Tensor]]


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _llm(kind: str = "llama", **extra: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": PAD,
        **extra,
    }


def _vit(kind: str, patch: int = 6, **extra: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": patch,
        **extra,
    }


def _clip() -> dict[str, Any]:
    return _vit("clip_vision_model", projection_dim=16)


def _siglip(patch: int = 6) -> dict[str, Any]:
    return _vit("siglip_vision_model", patch, vision_use_head=False)


def _mrope(kind: str, **extra: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return _llm(kind, rope_parameters=rope, **extra)


def _each(n: list[int], *shape: int) -> torch.Tensor:
    """Noise per picture, the same for the i-th picture whatever else is in the batch."""
    return torch.stack([_noise(*shape, seed=i) for i in range(sum(n))])


def _square(n: list[int]) -> dict[str, torch.Tensor]:
    return {"pixel_values": _each(n, 3, 24, 24)}


def _anyres(n: list[int]) -> dict[str, torch.Tensor]:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sizes = torch.tensor([SIZES[i % 4] for i in range(sum(n))])
    crops = max(image_size_to_num_patches(size, PINPOINTS, 24) for size in sizes)
    return {"pixel_values": _each(n, 5, 3, 24, 24)[:, :crops], "image_sizes": sizes}


def _patches(n: list[int]) -> dict[str, torch.Tensor]:
    grids = torch.tensor([GRIDS[i % 4] for i in range(sum(n))])
    counts = grids.prod(-1).tolist()
    pixels = torch.cat([_noise(count, 3 * 2 * 4 * 4, seed=i) for i, count in enumerate(counts)])
    return {"pixel_values": pixels, "image_grid_thw": grids}


def _tiles(n: list[int]) -> dict[str, torch.Tensor]:
    pixels = torch.zeros(len(n), max(n), 3, 24, 24)
    for b, count in enumerate(n):
        pixels[b, :count] = _noise(count, 3, 24, 24, seed=b)
    return {"pixel_values": pixels}


def _padded(n: list[int]) -> dict[str, torch.Tensor]:
    shapes = [[24, 36], [36, 24], [24, 24]]
    sizes = torch.tensor([shapes[i % 3] for i in range(sum(n))])
    pixels = torch.zeros(sum(n), 3, 36, 36)
    for i, (h, w) in enumerate(sizes.tolist()):
        pixels[i, :, :h, :w] = _noise(3, h, w, seed=i)
    return {"pixel_values": pixels, "image_sizes": sizes}


def _llava() -> tuple[Any, Pixels]:
    config = tf.LlavaConfig(vision_config=_clip(), text_config=_llm(), image_token_id=IMAGE)
    return tf.LlavaForConditionalGeneration(config), _square


def _vipllava() -> tuple[Any, Pixels]:
    config = tf.VipLlavaConfig(
        vision_config=_clip(),
        text_config=_llm(),
        image_token_id=IMAGE,
        vision_feature_layers=[-2, -1],
    )
    return tf.VipLlavaForConditionalGeneration(config), _square


def _pixtral() -> dict[str, Any]:
    return _vit("pixtral", 3, head_dim=12) | {"image_size": 48}


def _mistral() -> dict[str, Any]:
    return _llm("mistral", head_dim=8, sliding_window=None)


def _pixtral_llava() -> tuple[Any, Pixels]:
    config = tf.LlavaConfig(
        vision_config=_pixtral(),
        text_config=_mistral(),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaForConditionalGeneration(config), _padded


def _mistral3() -> tuple[Any, Pixels]:
    config = tf.Mistral3Config(
        vision_config=_pixtral(),
        text_config=_mistral(),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )
    return tf.Mistral3ForConditionalGeneration(config), _padded


def _llava_next() -> tuple[Any, Pixels]:
    config = tf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=_llm(),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return tf.LlavaNextForConditionalGeneration(config), _anyres


def _llava_onevision() -> tuple[Any, Pixels]:
    config = tf.LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=_llm("qwen2"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), _anyres


def _internvl() -> tuple[Any, Pixels]:
    vision = _vit("internvl_vision") | {"image_size": [24, 24], "patch_size": [3, 3]}
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=_llm("qwen2"),
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    return tf.InternVLForConditionalGeneration(config), _square


def _qwen(vision: dict[str, Any]) -> dict[str, Any]:
    base = {"depth": 3, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    marks = {"vision_start_token_id": BEGIN, "vision_end_token_id": END}
    return {"vision_config": {**base, "spatial_merge_size": 2, **vision}, **ids, **marks}


def _qwen2_vl() -> tuple[Any, Pixels]:
    vision = {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}
    config = tf.Qwen2VLConfig(text_config=_mrope("qwen2_vl_text"), **_qwen(vision))
    return tf.Qwen2VLForConditionalGeneration(config), _patches


def _qwen2_5_vl() -> tuple[Any, Pixels]:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    config = tf.Qwen2_5_VLConfig(text_config=_mrope("qwen2_5_vl_text"), **_qwen(vision))
    return tf.Qwen2_5_VLForConditionalGeneration(config), _patches


def _qwen3_vl() -> tuple[Any, Pixels]:
    vision = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32}
    vision |= {"deepstack_visual_indexes": [1], "num_position_embeddings": 64}
    config = tf.Qwen3VLConfig(text_config=_mrope("qwen3_vl_text", head_dim=8), **_qwen(vision))
    return tf.Qwen3VLForConditionalGeneration(config), _patches


def _idefics3() -> tuple[Any, Pixels]:
    vision = _vit("idefics3_vision", 3)
    config = tf.Idefics3Config(
        vision_config=vision,
        text_config=_llm(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return tf.Idefics3ForConditionalGeneration(config), _tiles


def _smolvlm() -> tuple[Any, Pixels]:
    config = tf.SmolVLMConfig(
        vision_config=_vit("smolvlm_vision", 3),
        text_config=_llm(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return tf.SmolVLMForConditionalGeneration(config), _tiles


def _gemma3() -> tuple[Any, Pixels]:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = tf.Gemma3Config(
        vision_config=_siglip(3),
        text_config=_llm("gemma3_text", head_dim=8, sliding_window=512, layer_types=kinds),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        mm_tokens_per_image=16,
    )
    return tf.Gemma3ForConditionalGeneration(config), _square


def _paligemma() -> tuple[Any, Pixels]:
    config = tf.PaliGemmaConfig(
        vision_config=_siglip(),
        text_config=_llm("gemma", head_dim=8, num_key_value_heads=1),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return tf.PaliGemmaForConditionalGeneration(config), _square


def _fused(vision: dict[str, Any], blocks: int | list[int], **more: Any) -> tuple[Any, Pixels]:
    cls = vision["model_type"] != "siglip_vision_model"
    config = FusedLlavaConfig(
        vision_config=vision,
        text_config=_llm(),
        image_token_index=IMAGE,
        vision_feature_layer=blocks,
        vision_feature_select_strategy="default" if cls else "full",
        **more,
    )
    return FusedLlavaForConditionalGeneration(config), _square


def _fused_llava() -> tuple[Any, Pixels]:
    return _fused(_clip() | {"patch_size": 3}, [1, 3, -2])


def _fused_siglip() -> tuple[Any, Pixels]:
    """Two tokens of a cell: tokens without a grid."""
    return _fused(_siglip(3), -1, fusion_fused=2, fusion_form="release")


def _fused_internvl() -> tuple[Any, Pixels]:
    vision = _vit("internvl_vision") | {"image_size": [24, 24], "patch_size": [3, 3]}
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
        if "qwen" in self.name:
            out["mm_token_type_ids"] = (ids_BS == IMAGE).int()
        if self.name == "gemma3":
            out["token_type_ids"] = (ids_BS == IMAGE).long()
        if self.name == "paligemma":
            out["token_type_ids"] = torch.zeros_like(ids_BS)
        return out


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
    model, pixels = _BUILDERS[name]()
    generator = torch.Generator().manual_seed(11)
    for key, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 1.0 if "embed_tokens" in key else 2.0 / weight.shape[-1] ** 0.5
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    model.eval().set_attn_implementation(attention)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return Tiny(name, model, pixels)
