"""Nano's selector: what encoder and projector say of the pool, then one training per seed.

`python -m tokensieve.train.nano.selector --out runs/nano` after `make nano`. Seed 0 is what ships.
`--site features` trains on the encoder's features instead, as the papers do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tokensieve.data.extract import ExtractSettings, extract
from tokensieve.data.features import FeatureStore
from tokensieve.data.sources import open_source
from tokensieve.errors import TokensieveError
from tokensieve.hf.fingerprint import encoder_hash
from tokensieve.hf.models import load_encoder
from tokensieve.train.console import log_to_terminal
from tokensieve.train.recipe import make_recipe, read_settings
from tokensieve.train.selector import train_selector
from tokensieve.types import Site

SHARDS, SHARD = 8, 500  # 4,000 pictures of all kinds, documents too


def store_features(out: Path, shards: int, size: int, site: Site, pixels: bool = False) -> Path:
    """The store of the first `shards` x `size` pictures of the mix, made or completed.

    It comes from the embedded model's own encoder, so that the weights fit what ships; the folder
    above is named by a hash of it, so that those of another nano are never taken for them.
    """
    loaded = load_encoder("nano", device="cpu")
    folder = out / f"selector-{site}-{encoder_hash(loaded.model)[:8]}"
    store = folder / f"store-{shards * size}{'-pixels' if pixels else ''}"
    source = open_source(f"synth:mix:{shards * size}")
    extract(loaded, [source], store, ExtractSettings(site, pixels=pixels, chunk=size))
    return store


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for an error of the caller's making."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the pool lies or goes")
    parser.add_argument("--site", choices=("embeds", "features"), default="embeds")
    parser.add_argument("--config", default="experiments/selector-nano.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shards", type=int, default=SHARDS, help="shards of the pool to use")
    parser.add_argument("--shard-size", type=int, default=SHARD, help="pictures of a shard")
    parser.add_argument("--pixels", action="store_true", help="store the pictures, too")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.field=value")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    log_to_terminal()
    site = Site(options.site)
    try:
        stored = store_features(
            options.out, options.shards, options.shard_size, site, options.pixels
        )
    except TokensieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    features = FeatureStore([stored])
    settings = [*read_settings(options.config), *options.set]
    for seed in options.seeds:
        recipe = make_recipe(features.encoder, "default", settings)
        train_selector(features, recipe, stored.parent / f"seed{seed}", seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
