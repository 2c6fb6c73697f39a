"""Nano's selector: what encoder and projector say of the pool, then one training per seed.

`python -m tokensieve.train.nano.selector --out runs/nano` after `make nano`. Seed 0 is what ships.
`--site features` trains on the encoder's features instead, as the papers do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaModel

from tokensieve.hf.fingerprint import encoder_info, state_hash
from tokensieve.hf.nano import load_nano
from tokensieve.train import selector as trainer
from tokensieve.train.features import save_features
from tokensieve.train.nano.features import encode
from tokensieve.train.nano.pool import make_shard, open_shard
from tokensieve.types import EncoderInfo, Site

SHARDS, SHARD = 8, 500  # 4,000 pictures of all kinds, documents too


def store_features(out: Path, shards: int, size: int, site: Site) -> list[Path]:
    """Tokens (N, L, C) of the first `shards` pool shards of `size` pictures, made where missing.

    They come from the embedded model's own encoder, so that the weights fit what ships; the folder
    is named by a hash of it, so that those of another nano are never taken for them.
    """
    model, _ = load_nano()
    info, model = encoder_info(model), model.model
    if site is Site.EMBEDS:
        info = info.at_embeds()
    (out / "pool").mkdir(parents=True, exist_ok=True)
    folder = out / f"selector-{site}-{state_hash(model)[:8]}"
    return [_store(folder, model, info, number, size) for number in range(shards)]


@torch.no_grad()
def _store(folder: Path, model: LlavaModel, info: EncoderInfo, number: int, size: int) -> Path:
    path = folder / f"train-{number:04d}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pool = folder.parent / "pool"
        make_shard(pool, "train", number, size)
        images = np.array(open_shard(pool, "train", number).images)
        tokens = torch.from_numpy(encode(model.vision_tower, images))
        if info.site is Site.EMBEDS:
            tokens = model.multi_modal_projector(tokens.to(model.dtype))
        save_features(path, tokens, info)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code of the last training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the pool lies or goes")
    parser.add_argument("--site", choices=("embeds", "features"), default="embeds")
    parser.add_argument("--config", default="experiments/selector-nano.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shards", type=int, default=SHARDS, help="shards of the pool to use")
    parser.add_argument("--shard-size", type=int, default=SHARD, help="pictures of a shard")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.field=value")
    options = parser.parse_args(arguments)
    site = Site(options.site)
    stored = store_features(options.out, options.shards, options.shard_size, site)
    code = 0
    for seed in options.seeds:
        code = code or trainer.main(
            ["--features", *map(str, stored),
             "--out", str(stored[0].parent / f"seed{seed}"),
             "--config", options.config, "--seed", str(seed), "--set", *options.set]
        )  # fmt: skip
    return code


if __name__ == "__main__":
    raise SystemExit(main())
