"""Formulas of projectors against the modules themselves and PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch

from tokensieve.cost.flops import stf_paper_flops
from tokensieve.cost.measured import measured_flops
from tokensieve.cost.projectors import projector_flops, projector_parameters
from tokensieve.nn.fusion import FusionConfig, FusionProjector

SIZES = {"width": 8, "out_width": 12, "rows": 4, "columns": 8}
CONFIGS = [
    FusionConfig(**SIZES, **options)
    for options in (
        {},
        {"blocks": 3},
        {"blocks": 2, "form": "release"},
        {"kernel": 1},
        {"kernel": 4, "fused": 8, "form": "release"},
        {"fused": 2, "blocks": 2},
        {"kind": "concat"},
        {"kind": "avgpool"},
        {"kind": "swiglu", "kernel": 1, "blocks": 2},
        {"kind": "mlp", "kernel": 1, "blocks": 4},
        {"kind": "quecc", "kernel": 4, "blocks": 2},
    )
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_formulas_are_exact(config: FusionConfig) -> None:
    projector = FusionProjector(config)
    inputs = torch.randn(1, config.rows * config.columns, config.blocks * config.width)
    told = (torch.randn(1, config.out_width),) if config.kind == "quecc" else ()
    assert projector_parameters(config) == sum(p.numel() for p in projector.parameters())
    assert projector_flops(config) == measured_flops(lambda: projector(inputs, *told))


def test_beside_the_llm_a_projector_is_little() -> None:
    """LLaVA-1.5-7B, 144 tokens: 1.9 TFLOPs of LLM as the paper prints, and 4 % on top of them."""
    config = FusionConfig(blocks=8, form="release")
    assert config.tokens == 144
    assert round(stf_paper_flops(144) / 1e12, 1) == 1.9
    assert 0.04 < projector_flops(config) / stf_paper_flops(144) < 0.05
