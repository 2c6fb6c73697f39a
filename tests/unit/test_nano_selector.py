"""The selector's recipe for nano runs from nothing and gives weights that nano accepts."""

from __future__ import annotations

from pathlib import Path

import torch

from tokensieve.hf.nano import load_nano
from tokensieve.hf.sieve import encoder_info
from tokensieve.methods.registry import get_method
from tokensieve.train.nano.selector import main
from tokensieve.types import VisionTokens

ROOT = Path(__file__).parents[2]


def test_recipe_in_miniature(tmp_path: Path) -> None:
    code = main(
        ["--out", str(tmp_path), "--config", str(ROOT / "experiments/selector-nano.json"),
         "--seeds", "7", "--shards", "1", "--shard-size", "20", "--set", "train.steps=3",
         "train.batch=2"]
    )  # fmt: skip
    assert code == 0
    model, _ = load_nano()
    (made,) = tmp_path.glob("selector-embeds-*/seed7/selector")
    method = get_method("selector", weights=made)
    bound = method.bind(encoder_info(model))
    tokens = torch.randn(1, 256, 128, generator=torch.Generator().manual_seed(0))
    kept = bound.reduce(VisionTokens(tokens, grid=(16, 16)), torch.tensor([10])).kept
    assert int(kept.sum()) == 10
    assert bound.selector.config.rule == "diverse"  # as the shipped config says
