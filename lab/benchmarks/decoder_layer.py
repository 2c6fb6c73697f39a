"""Seconds of one decoder layer at the shapes of a 7B LLM: what dropping tokens saves."""

from __future__ import annotations

from time import perf_counter

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

LAYERS, HEADS, WIDTH = 32, 32, 4096  # Vicuna-7B, the LLM of LLaVA-1.5 and LLaVA-NeXT
TEXT = 64  # tokens of the prompt beside the picture's


class DecoderLayer:
    """One layer with random weights; a prefill is `LAYERS` times it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        config = LlamaConfig(
            hidden_size=WIDTH, intermediate_size=11008, num_hidden_layers=1,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, attn_implementation="sdpa",  # type: ignore[call-arg]
        )  # fmt: skip
        torch.manual_seed(0)
        self.layer = LlamaDecoderLayer(config, 0).to(dtype).eval()
        self.rotary = LlamaRotaryEmbedding(config)
        self.dtype = dtype

    @torch.inference_mode()
    def seconds(self, visual: int, rounds: int = 1) -> float:
        """The least of some runs over a prompt of `visual` tokens and the text; one warms up."""
        length = visual + TEXT
        hidden = torch.randn(1, length, WIDTH, dtype=self.dtype)
        places = torch.arange(length)[None]
        rotary = self.rotary(hidden, places)
        self.layer(hidden[:, :16], position_embeddings=tuple(r[:, :16] for r in rotary))
        spent = []
        for _ in range(rounds):
            start = perf_counter()
            self.layer(hidden, position_embeddings=rotary)
            spent.append(perf_counter() - start)
        return min(spent)
