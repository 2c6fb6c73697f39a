"""FLOPs by formula, in the conventions of the papers and exactly for a given config.

n tokens, d width, m MLP width, l layers. "MACs" count a multiply-add once, "FLOPs" twice. Attention
is counted in full (n^2, not the causal half), as the papers and `torch.utils.flop_counter` do.
Norms, softmax and activations are left out, as everywhere.

[1] When Less is Enough, arXiv 2503.16660, and its follow-up, Adaptive Vision Token Selection.
[2] Learning Compact Vision Tokens, arXiv 2506.07138.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokensieve.cost.shapes import TransformerShape
from tokensieve.errors import ConfigError

VICUNA_7B = TransformerShape(32, 4096, 11008, 32, 32, 128, vocab=32000)


def selector_paper_macs(
    tokens: int, *, width: int = 4096, ffn: int = 11008, layers: int = 32
) -> int:
    """LLM MACs over `tokens` visual tokens as [1] counts them: (4nd^2 + 2n^2d + 3ndm) l.

    [1] prints 2ndm; its TFLOPs only come out with 3, the three matrices of a gated MLP.
    """
    n, d, m = tokens, width, ffn
    return (4 * n * d * d + 2 * n * n * d + 3 * n * d * m) * layers


def sampler_macs(
    tokens: int, *, crop_tokens: int = 576, width: int = 1024, ffn: int = 4096, layers: int = 4
) -> int:
    """MACs of the selector over `tokens` in crops of `crop_tokens`, as [1] counts them."""
    c, d, m = crop_tokens, width, ffn
    return tokens * (4 * c * d * d + 2 * c * c * d + 2 * c * d * m) * layers // c


def stf_paper_flops(tokens: int, *, width: int = 4096, ffn: int = 11008, layers: int = 32) -> int:
    """LLM FLOPs over `tokens` visual tokens as [2] counts them: two per multiply-add."""
    return 2 * selector_paper_macs(tokens, width=width, ffn=ffn, layers=layers)


def prefill_flops(shape: TransformerShape, tokens: int, *, gqa: bool = True) -> int:
    """FLOPs of one pass over a prompt of `tokens`, the output head at its last token only.

    gqa=False counts keys and values at full width, as the papers' formulas do.
    """
    return _stack(shape, tokens, keys=tokens * tokens, gqa=gqa) + 2 * shape.width * shape.vocab


def prefill_flops_by_layer(shape: TransformerShape, tokens: Sequence[int]) -> int:
    """`prefill_flops` where each layer reads its own number of `tokens` (dropped inside the LLM).

    Raises `ConfigError` unless there is one number per layer.
    """
    if len(tokens) != shape.layers:
        raise ConfigError(f"Expected {shape.layers} token counts, one a layer. Got {len(tokens)}.")
    single = replace(shape, layers=1)
    layers = sum(_stack(single, n, keys=n * n, gqa=True) for n in tokens)
    return layers + 2 * shape.width * shape.vocab


def decode_flops(shape: TransformerShape, prompt: int, new: int, *, gqa: bool = True) -> int:
    """FLOPs of the passes that yield `new` tokens after a prompt of `prompt` cached ones.

    The first new token comes from the prefill, so there are new - 1 passes, each over one token
    that attends to all before it and itself.
    """
    passes = max(0, new - 1)
    keys = passes * prompt + passes * (passes + 1) // 2
    head = 2 * shape.width * shape.vocab * passes
    return _stack(shape, passes, keys=keys, gqa=gqa) + head


def decode_flops_by_layer(shape: TransformerShape, prompts: Sequence[int], new: int) -> int:
    """`decode_flops` where each layer has its own number of `prompts` tokens in its cache.

    Raises `ConfigError` unless there is one number per layer.
    """
    if len(prompts) != shape.layers:
        raise ConfigError(f"Expected {shape.layers} token counts, one a layer. Got {len(prompts)}.")
    single = replace(shape, layers=1, vocab=0)
    head = 2 * shape.width * shape.vocab * max(0, new - 1)
    return sum(decode_flops(single, prompt, new) for prompt in prompts) + head


def encoder_flops(shape: TransformerShape, tokens: int, crops: int = 1) -> int:
    """FLOPs of an encoder over `crops` pictures of `tokens` each (its patch stem left out)."""
    return crops * _stack(shape, tokens, keys=tokens * tokens, gqa=True)


def _stack(shape: TransformerShape, tokens: int, *, keys: int, gqa: bool) -> int:
    """FLOPs of `tokens` through all layers; `keys`: query-key pairs."""
    inner = shape.heads * shape.head_dim
    outer = shape.kv_heads * shape.head_dim if gqa else inner
    attention = tokens * shape.width * (2 * inner + 2 * outer) + 2 * keys * inner
    mlp = tokens * shape.width * shape.ffn * (3 if shape.gated else 2)
    return 2 * shape.layers * (attention + mlp)
