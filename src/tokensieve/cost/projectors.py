"""What a fusion projector costs: parameters and FLOPs, by formula.

L tokens of the encoder, C channels of one of its blocks, k kernel, E fused tokens of a cell, D LLM
width. FLOPs count a multiply-add twice; biases and activations are left out, as everywhere.
"""

from __future__ import annotations

from tokensieve.nn.fusion import SPREAD, FusionConfig


def projector_parameters(config: FusionConfig) -> int:
    """Weights and biases of a `FusionProjector`."""
    return sum(rows * columns + columns for rows, columns, _ in _products(config))


def projector_flops(config: FusionConfig) -> int:
    """FLOPs of a `FusionProjector` over one picture."""
    products = sum(2 * rows * columns * times for rows, columns, times in _products(config))
    scores = 4 * config.rows * config.columns * config.width if config.kind == "quecc" else 0
    return products + scores


def _products(config: FusionConfig) -> list[tuple[int, int, int]]:
    """(channels in, channels out, how often) of every matrix product over one picture."""
    C, D, k, E = config.width, config.out_width, config.kernel, config.fused
    L, cells, cell = config.rows * config.columns, config.tokens // E, k * k * C
    products = []
    if config.blocks > 1:
        products += [(config.blocks * C, SPREAD * C, L), (SPREAD * C, C, L)]
    if config.kind == "fusion":
        inner = cell // E
        if config.form == "paper":
            products.append((cell, cell, cells))
        products += [(inner, SPREAD * inner, cells * E), (SPREAD * inner, D, cells * E)]
    elif config.kind == "swiglu":
        products += [(C, D, cells), (C, D, cells), (D, D, cells)]
    elif config.kind == "quecc":
        products += [(D, C, 1), *[(C, C, L)] * 8, (k * k, C, cells), *[(C, C, cells)] * 2]
        products += [(1, C, 0)] * 4  # layer norms: weights, and no product
        products += [(C, D, cells), (D, D, cells)]
    else:
        wide = cell if config.kind == "concat" else C
        products += [(wide, D, cells), (D, D, cells)]
    return products
