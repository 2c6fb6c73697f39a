"""What the tiny models are built of: parts of configs, and noise in the shapes processors give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCAB, IMAGE, VIDEO, PAD, BEGIN, END = 200, 150, 151, 0, 152, 153
SYSTEM = (31, 41, 59)  # words in front of the first picture, as a chat template's system prompt
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
SIZES = [[40, 24], [24, 60], [24, 24], [30, 48]]
GRIDS = [[1, 8, 4], [1, 4, 12], [1, 4, 4], [1, 12, 8]]
Pixels = Callable[[list[int]], dict[str, torch.Tensor]]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def llm(kind: str = "llama", **extra: Any) -> dict[str, Any]:
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


def vit(kind: str, patch: int = 6, **extra: Any) -> dict[str, Any]:
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


def clip() -> dict[str, Any]:
    return vit("clip_vision_model", projection_dim=16)


def siglip(patch: int = 6) -> dict[str, Any]:
    return vit("siglip_vision_model", patch, vision_use_head=False)


def mrope(kind: str, **extra: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return llm(kind, rope_parameters=rope, **extra)


def each(n: list[int], *shape: int) -> torch.Tensor:
    """Noise per picture, the same for the i-th picture whatever else is in the batch."""
    return torch.stack([noise(*shape, seed=i) for i in range(sum(n))])


def square(n: list[int]) -> dict[str, torch.Tensor]:
    return {"pixel_values": each(n, 3, 24, 24)}


def anyres(n: list[int]) -> dict[str, torch.Tensor]:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sizes = torch.tensor([SIZES[i % 4] for i in range(sum(n))])
    crops = max(image_size_to_num_patches(size, PINPOINTS, 24) for size in sizes)
    return {"pixel_values": each(n, 5, 3, 24, 24)[:, :crops], "image_sizes": sizes}


def patches(n: list[int]) -> dict[str, torch.Tensor]:
    grids = torch.tensor([GRIDS[i % 4] for i in range(sum(n))])
    counts = grids.prod(-1).tolist()
    pixels = torch.cat([noise(count, 3 * 2 * 4 * 4, seed=i) for i, count in enumerate(counts)])
    return {"pixel_values": pixels, "image_grid_thw": grids}


def tiles(n: list[int]) -> dict[str, torch.Tensor]:
    pixels = torch.zeros(len(n), max(n), 3, 24, 24)
    for b, count in enumerate(n):
        pixels[b, :count] = noise(count, 3, 24, 24, seed=b)
    return {"pixel_values": pixels}


def padded(n: list[int]) -> dict[str, torch.Tensor]:
    shapes = [[24, 36], [36, 24], [24, 24]]
    sizes = torch.tensor([shapes[i % 3] for i in range(sum(n))])
    pixels = torch.zeros(sum(n), 3, 36, 36)
    for i, (h, w) in enumerate(sizes.tolist()):
        pixels[i, :, :h, :w] = noise(3, h, w, seed=i)
    return {"pixel_values": pixels, "image_sizes": sizes}


def pixtral() -> dict[str, Any]:
    return vit("pixtral", 3, head_dim=12) | {"image_size": 48}


def mistral() -> dict[str, Any]:
    return llm("mistral", head_dim=8, sliding_window=None)


def qwen(vision: dict[str, Any]) -> dict[str, Any]:
    base = {"depth": 3, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    marks = {"vision_start_token_id": BEGIN, "vision_end_token_id": END}
    return {"vision_config": {**base, "spatial_merge_size": 2, **vision}, **ids, **marks}
