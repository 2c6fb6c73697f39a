"""Whole VLMs as far as costs depend on them: presets, or any Transformers config.

Counts by formula in the three conventions of `tokensieve.cost.flops`, stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from tokensieve.budget import count
from tokensieve.cost.encoders import SHAPES, EncoderShape, encode_flops
from tokensieve.cost.flops import (
    VICUNA_7B,
    decode_flops,
    prefill_flops,
    sampler_macs,
    selector_paper_macs,
    stf_paper_flops,
)
from tokensieve.cost.kv import kv_bytes
from tokensieve.cost.shapes import TransformerShape
from tokensieve.cost.training import selector_flops
from tokensieve.errors import ConfigError, UnsupportedError
from tokensieve.nn.config import SelectorConfig

CONVENTIONS = ("exact", "selector", "stf")
_VICUNA_13B = TransformerShape(40, 5120, 13824, 40, 40, 128, vocab=32000)
_QWEN2_7B = TransformerShape(28, 3584, 18944, 28, 4, 128, vocab=152064)
_QWEN2_1_5B = TransformerShape(28, 1536, 8960, 12, 2, 128, vocab=151674)
_QWEN3_8B = TransformerShape(36, 4096, 12288, 32, 8, 128, vocab=151936)
_QWEN3_VIT = EncoderShape(  # a picture of 640 x 480; all layers see all patches
    "qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl_vision",
    TransformerShape(27, 1152, 4304, 16, 16, 72, gated=False), parameters=0, embed_width=4096,
    patch=16, rows=30, cols=40, merge=2, frames=2, merger=True, fixed=False,
)  # fmt: skip


@dataclass(frozen=True)
class VlmShape:
    """A vision encoder with its crops a picture, and the LLM behind a two-layer projector."""

    name: str
    encoder: EncoderShape
    llm: TransformerShape

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture, row ends left out."""
        return self.encoder.tokens * self.encoder.crops

    def of_tokens(self, tokens: int) -> VlmShape:
        """The same with a picture of at least so many visual tokens: more crops, or a square
        picture of another size where the encoder takes any."""
        if self.encoder.fixed:
            crops = math.ceil(tokens / self.encoder.tokens)
            return replace(self, encoder=replace(self.encoder, crops=crops))
        side = math.ceil(math.sqrt(tokens)) * self.encoder.merge
        return replace(self, encoder=replace(self.encoder, rows=side, cols=side))


def _preset(name: str, encoder: str, llm: TransformerShape) -> VlmShape:
    return VlmShape(name, replace(SHAPES[encoder], embed_width=llm.width), llm)


PRESETS = {
    shape.name: shape
    for shape in (
        _preset("llava-1.5-7b", "clip-l-336", VICUNA_7B),
        _preset("llava-1.5-13b", "clip-l-336", _VICUNA_13B),
        _preset("llava-next-7b", "clip-l-336-next", VICUNA_7B),
        _preset("llava-next-13b", "clip-l-336-next", _VICUNA_13B),
        _preset("llava-onevision-7b", "siglip-so400m-384", _QWEN2_7B),
        _preset("internvl3-2b", "internvit-300m-448", _QWEN2_1_5B),
        _preset("internvl3-8b", "internvit-300m-448", _QWEN2_7B),
        _preset("qwen2.5-vl-7b", "qwen2.5-vl", _QWEN2_7B),
        VlmShape("qwen3-vl-8b", _QWEN3_VIT, _QWEN3_8B),
    )
}


def vlm_of_config(name: str, config: Any) -> VlmShape:
    """The shape a Transformers config says, with one picture of its own size in one crop.

    Raises `UnsupportedError` where sizes are not said, or the LLM is a mixture of experts.
    """
    vision = getattr(config, "vision_config", None)
    patch, size = getattr(vision, "patch_size", None), getattr(vision, "image_size", None)
    patch, size = (one[0] if isinstance(one, list | tuple) else one for one in (patch, size))
    if vision is None or not isinstance(patch, int):
        raise UnsupportedError(
            f"Expected a config of a VLM that says its patches. Got '{config.model_type}', which "
            "does not. Take a preset, or count it with tokensieve.cost.measured."
        )
    llm = TransformerShape.of_llm(config)
    fixed = isinstance(size, int)
    merge = _merge(config, vision)
    side = (size if isinstance(size, int) else 28 * patch) // patch
    encoder = EncoderShape(
        name, name, vision.model_type, TransformerShape.of_encoder(config), 0, llm.width,
        patch=patch, rows=side - side % merge, cols=side - side % merge, merge=merge,
        cls="clip" in vision.model_type or "internvl" in vision.model_type, fixed=fixed,
    )  # fmt: skip
    return VlmShape(name, encoder, llm)


def _merge(config: Any, vision: Any) -> int:
    """Patches along the side of an LLM token."""
    for where, field in ((vision, "spatial_merge_size"), (config, "spatial_merge_size"),
                         (config, "scale_factor")):  # fmt: skip
        if isinstance(value := getattr(where, field, None), int):
            return value
    ratio = getattr(config, "downsample_ratio", None)
    return round(1 / ratio) if ratio else 1


def stages(
    vlm: VlmShape, keep: float | int, *, text: int, new: int,
    selector: SelectorConfig | None = None, patches: bool = False,
) -> dict[str, int]:  # fmt: skip
    """FLOPs (two per multiply-add) by stage for one picture, of which `keep` of the visual tokens
    go to the LLM with `text` others, and `new` tokens are answered.

    `selector` chooses them crop by crop; without one "selection" is 0. patches: they are chosen
    before the encoder, which is run on what is kept (a merger is no part of the projector then;
    other projectors are run on all, as in the library). Raises `BudgetError` for a
    `keep` that cannot be.
    """
    e, llm = vlm.encoder, vlm.llm
    prompt = count(keep, vlm.tokens) + text
    inlet = e.transformer.width * e.merge**2
    projected = 0 if e.merger else 2 * e.tokens * e.crops * llm.width * (inlet + llm.width)
    return {
        "encoder": encode_flops(e, count(keep, e.tokens) if patches else None) * e.crops,
        "selection": 0 if selector is None else selector_flops(selector, e.tokens) * e.crops,
        "projector": projected,
        "prefill": prefill_flops(llm, prompt),
        "decode": decode_flops(llm, prompt, new),
    }


def paper_stages(vlm: VlmShape, keep: float | int, convention: str) -> dict[str, int]:
    """What the papers count, of visual tokens alone: "selector" multiply-adds of LLM and
    sampler, "stf" FLOPs of the LLM. Raises `ConfigError` for another convention."""
    tokens, llm = count(keep, vlm.tokens), vlm.llm
    sizes: Mapping[str, int] = {"width": llm.width, "ffn": llm.ffn, "layers": llm.layers}
    if convention == "stf":
        return {"prefill": stf_paper_flops(tokens, **sizes)}
    if convention != "selector":
        raise ConfigError(
            f"Expected one of the papers' conventions, {', '.join(CONVENTIONS[1:])}. Got "
            f"'{convention}'. For all stages call stages."
        )
    e, t = vlm.encoder, vlm.encoder.transformer
    sampler = sampler_macs(
        e.tokens * e.crops, crop_tokens=e.tokens, width=t.width * e.merge**2, ffn=t.ffn
    )
    return {
        "selection": sampler if tokens < vlm.tokens else 0,
        "prefill": selector_paper_macs(tokens, **sizes),
    }


def cache_of(vlm: VlmShape, keep: float | int, *, text: int, new: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values once all is answered."""
    prompt = count(keep, vlm.tokens) + text
    return kv_bytes(vlm.llm, prompt + max(0, new - 1), dtype)
