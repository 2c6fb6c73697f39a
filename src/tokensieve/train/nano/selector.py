"""Nano's selector: features of the frozen encoder over the pool, then one training per seed.

`python -m tokensieve.train.nano.selector --out runs/nano` after `make nano`. Seed 0 is what ships.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPVisionModel

from tokensieve.hf.nano import load_nano
from tokensieve.hf.sieve import encoder_info
from tokensieve.train import selector as trainer
from tokensieve.train.features import save_features
from tokensieve.train.nano.features import encode
from tokensieve.train.nano.pool import make_shard, open_shard
from tokensieve.types import EncoderInfo

SHARDS, SHARD = 6, 500  # 3,000 pictures of all kinds, documents too


def store_features(out: Path, shards: int, size: int) -> list[Path]:
    """Features (N, L, C) of the first `shards` pool shards of `size` pictures, made where missing.

    They come from the embedded model's own encoder, so that the weights fit what ships.
    """
    model, _ = load_nano()
    encoder, info = model.model.vision_tower, encoder_info(model)
    (out / "pool").mkdir(parents=True, exist_ok=True)
    return [_store(out, encoder.eval(), info, number, size) for number in range(shards)]


def _store(out: Path, encoder: CLIPVisionModel, info: EncoderInfo, number: int, size: int) -> Path:
    path = out / "selector-features" / f"train-{number:04d}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_shard(out / "pool", "train", number, size)
        features = encode(encoder, open_shard(out / "pool", "train", number).images)
        save_features(path, torch.from_numpy(features), info)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code of the last training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the pool lies or goes")
    parser.add_argument("--config", default="experiments/selector-nano.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shards", type=int, default=SHARDS, help="shards of the pool to use")
    parser.add_argument("--shard-size", type=int, default=SHARD, help="pictures of a shard")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.field=value")
    options = parser.parse_args(arguments)
    files = [str(p) for p in store_features(options.out, options.shards, options.shard_size)]
    code = 0
    for seed in options.seeds:
        code = code or trainer.main(
            ["--features", *files, "--out", str(options.out / f"selector-seed{seed}"),
             "--config", options.config, "--seed", str(seed), "--set", *options.set]
        )  # fmt: skip
    return code


if __name__ == "__main__":
    raise SystemExit(main())
