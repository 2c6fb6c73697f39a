"""What a config says about the size of an LLM or an encoder, as far as costs depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokensieve.errors import UnsupportedError


@dataclass(frozen=True)
class TransformerShape:
    """A stack of equal Transformer layers.

    width: of the residual stream. ffn: of the MLP's hidden layer. gated: the MLP has a gate
    (three matrices, SwiGLU) or not (two). kv_heads < heads: grouped-query attention.
    vocab: rows of the output head, 0 where there is none.
    """

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool = True
    vocab: int = 0

    @classmethod
    def of_llm(cls, config: Any) -> TransformerShape:
        """The LLM of a Transformers config, of a VLM or bare.

        Raises `UnsupportedError` for a mixture of experts or a config without the usual fields.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
            raise UnsupportedError(
                f"Expected a dense LLM. Got the mixture of experts '{text.model_type}'. "
                "Count it with tokensieve.cost.measured instead."
            )
        heads = _field(text, "num_attention_heads")
        width = _field(text, "hidden_size")
        return cls(
            layers=_field(text, "num_hidden_layers"),
            width=width,
            ffn=_field(text, "intermediate_size"),
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or width // heads,
            gated=getattr(text, "model_type", "") not in _UNGATED,
            vocab=_field(text, "vocab_size"),
        )

    @classmethod
    def of_encoder(cls, config: Any) -> TransformerShape:
        """The vision encoder of a VLM's config (or a bare vision config), without its patch stem.

        Raises `UnsupportedError` for a config without the usual fields.
        """
        vision = getattr(config, "vision_config", config)
        width = _field(vision, "hidden_size", "embed_dim")
        if getattr(vision, "out_hidden_size", None) and hasattr(vision, "embed_dim"):
            width = vision.embed_dim  # Qwen2-VL calls the merger's output `hidden_size`
        heads = _field(vision, "num_attention_heads", "num_heads")
        ffn = getattr(vision, "intermediate_size", None) or int(width * _field(vision, "mlp_ratio"))
        return cls(
            layers=_field(vision, "num_hidden_layers", "depth"),
            width=width,
            ffn=ffn,
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            gated=vision.model_type in _GATED_ENCODERS,
        )


_UNGATED = {"opt", "gpt2", "gpt_neox", "gptj", "phi", "falcon", "bloom", "mpt", "starcoder2"}
_GATED_ENCODERS = {"qwen2_5_vl", "qwen2_5_vl_vision", "pixtral"}


def _field(config: Any, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    kind = getattr(config, "model_type", type(config).__name__)
    raise UnsupportedError(
        f"Expected a config with {' or '.join(names)}. Got '{kind}' without. "
        "Count this model with tokensieve.cost.measured instead."
    )
