"""Models of a preset's shapes with random weights, to measure what checkpoints would cost.

The classes are those of Transformers. CLIP and SigLIP stand in a LLaVA (the crops of LLaVA-NeXT and
OneVision are pictures side by side, their row ends left out).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokensieve.cost.models import VlmShape
from tokensieve.errors import ConfigError, UnsupportedError


def cut_to(shape: VlmShape, layers: int | None) -> VlmShape:
    """The same with at most so many layers in encoder and LLM; of a windowed encoder so many that
    windowed and full layers stand as they do in the whole one, whose times they are to stand for.

    Raises `ConfigError` below 1.
    """
    if layers is None:
        return shape
    if layers < 1:
        raise ConfigError(f"Expected at least 1 layer. Got {layers}. Ask for more: --layers 2.")
    tower, full = shape.encoder.transformer, shape.encoder.full_layers
    of_tower = min(layers, tower.layers)
    if full:
        pattern = tower.layers // full
        full = -(-of_tower // pattern)
        of_tower = full * pattern
    fewer = replace(tower, layers=of_tower)
    encoder = replace(shape.encoder, transformer=fewer, full_layers=full, layer=-1)
    llm = replace(shape.llm, layers=min(layers, shape.llm.layers))
    return replace(shape, encoder=encoder, llm=llm)


def random_vlm(shape: VlmShape, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of that shape. Raises `UnsupportedError` for an encoder that is not known here."""
    import transformers as tf

    kind = shape.encoder.model_type
    cls: Any
    if kind in ("clip_vision_model", "siglip_vision_model"):
        cls, config = tf.LlavaForConditionalGeneration, _llava(tf, shape)
    elif kind == "internvl_vision":
        cls, config = tf.InternVLForConditionalGeneration, _internvl(tf, shape)
    elif kind == "qwen2_5_vl_vision":
        cls, config = tf.Qwen2_5_VLForConditionalGeneration, _qwen2_5(tf, shape)
    elif kind == "qwen3_vl_vision":
        cls, config = tf.Qwen3VLForConditionalGeneration, _qwen3(tf, shape)
    else:
        raise UnsupportedError(
            f"Expected a preset whose encoder can be built at random. Got '{kind}'. Measure a "
            "checkpoint: --model FOLDER."
        )
    with torch.device(device):
        return cls._from_config(config, dtype=dtype).eval()


def random_inputs(
    shape: VlmShape, batch: int, text: int, model: Any, seed: int = 0
) -> dict[str, Tensor]:
    """`batch` equal prompts of one picture and `text` other tokens; a token stands between crops.

    Pixels and tokens are noise: neither decides what a pass costs.
    """
    e, config = shape.encoder, model.config
    generator = torch.Generator().manual_seed(seed)
    image = config.image_token_id
    crop = [image] * e.tokens
    ids = [1, *crop]
    for _ in range(e.crops - 1):
        ids += [2, *crop]
    words = torch.randint(3, 1000, (max(0, text - e.crops),), generator=generator)
    ids = [*ids, *words.tolist()]
    if e.fixed:
        pixels = torch.randn(batch * e.crops, 3, *e.size, generator=generator)
        inputs = {"pixel_values": pixels}
    else:
        patches = e.rows * e.cols
        width = 3 * e.frames * e.patch**2
        inputs = {
            "pixel_values": torch.randn(batch * patches, width, generator=generator),
            "image_grid_thw": torch.tensor([[1, e.rows, e.cols]] * batch),
        }
        ids = [config.vision_start_token_id, *ids[1:]]
    prompt = torch.tensor([ids] * batch)
    inputs |= {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    if not e.fixed:
        inputs["mm_token_type_ids"] = (prompt == image).long()
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return {name: value.to(model.device) for name, value in inputs.items()}


def _text(shape: VlmShape, **more: Any) -> dict[str, Any]:
    llm = shape.llm
    return {
        "hidden_size": llm.width, "intermediate_size": llm.ffn, "num_hidden_layers": llm.layers,
        "num_attention_heads": llm.heads, "num_key_value_heads": llm.kv_heads,
        "head_dim": llm.head_dim, "vocab_size": llm.vocab, "max_position_embeddings": 65536,
        "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, **more,
    }  # fmt: skip


def _tower(shape: VlmShape) -> dict[str, Any]:
    t = shape.encoder.transformer
    return {
        "hidden_size": t.width, "intermediate_size": t.ffn, "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads, "image_size": shape.encoder.size[0],
        "patch_size": shape.encoder.patch,
    }  # fmt: skip


def _llava(tf: Any, shape: VlmShape) -> Any:
    clip = shape.encoder.cls
    vision = (tf.CLIPVisionConfig if clip else tf.SiglipVisionConfig)(**_tower(shape))
    text = (tf.LlamaConfig if clip else tf.Qwen2Config)(**_text(shape))
    return tf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=shape.llm.vocab - 1,
        vision_feature_layer=shape.encoder.layer,
        vision_feature_select_strategy="default" if clip else "full",
        image_seq_length=shape.encoder.tokens,
    )  # fmt: skip


def _internvl(tf: Any, shape: VlmShape) -> Any:
    tower, e = _tower(shape), shape.encoder
    for name in ("image_size", "patch_size"):
        tower[name] = [tower[name]] * 2
    return tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**tower), text_config=tf.Qwen2Config(**_text(shape)),
        image_token_id=shape.llm.vocab - 1, image_seq_length=e.tokens,
        downsample_ratio=1 / e.merge,
    )  # fmt: skip


def _rope(shape: VlmShape) -> dict[str, Any]:
    """Shares of a head's width that turn with time, height and width."""
    half = shape.llm.head_dim // 2
    rest = (half - half // 4) // 2
    sections = [half - 2 * rest, rest, rest]
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}


def _special(shape: VlmShape) -> dict[str, int]:
    last = shape.llm.vocab - 1
    return {"image_token_id": last, "video_token_id": last - 1, "vision_start_token_id": last - 2,
            "vision_end_token_id": last - 3}  # fmt: skip


def _qwen2_5(tf: Any, shape: VlmShape) -> Any:
    e, t = shape.encoder, shape.encoder.transformer
    step = max(1, t.layers // max(1, e.full_layers))
    vision = {
        "depth": t.layers, "hidden_size": t.width, "intermediate_size": t.ffn,
        "num_heads": t.heads, "patch_size": e.patch, "spatial_merge_size": e.merge,
        "temporal_patch_size": e.frames, "out_hidden_size": shape.llm.width,
        "window_size": e.window * e.patch,
        "fullatt_block_indexes": list(range(step - 1, t.layers, step)),
    }  # fmt: skip
    text = _text(shape, rope_parameters=_rope(shape))
    return tf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **_special(shape))


def _qwen3(tf: Any, shape: VlmShape) -> Any:
    e, t = shape.encoder, shape.encoder.transformer
    deep = [n for n in (8, 16, 24) if n < t.layers][: max(0, shape.llm.layers - 1)]
    vision = {
        "depth": t.layers, "hidden_size": t.width, "intermediate_size": t.ffn,
        "num_heads": t.heads, "patch_size": e.patch, "spatial_merge_size": e.merge,
        "temporal_patch_size": e.frames, "out_hidden_size": shape.llm.width,
        "deepstack_visual_indexes": deep, "num_position_embeddings": 2304,
    }  # fmt: skip
    text = _text(shape, rope_parameters=_rope(shape) | {"mrope_interleaved": True})
    return tf.Qwen3VLConfig(vision_config=vision, text_config=text, **_special(shape))
