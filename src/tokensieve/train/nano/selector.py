"""Nano's selector: what encoder and projector say of the pool, then one training per seed.

`python -m tokensieve.train.nano.selector --out runs/nano` after `make nano`. Seed 0 is what ships.
`--site features` trains on the encoder's features instead, as the papers do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tokensieve.data.extract import ExtractSettings, extract
from tokensieve.data.sources import open_source
from tokensieve.errors import TokensieveError
from tokensieve.hf.fingerprint import encoder_hash
from tokensieve.hf.models import load_encoder
from tokensieve.train import selector as trainer
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
    """Command line; returns the exit code of the last training."""
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
    site = Site(options.site)
    try:
        stored = store_features(
            options.out, options.shards, options.shard_size, site, options.pixels
        )
    except TokensieveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    code = 0
    for seed in options.seeds:
        code = code or trainer.main(
            ["--features", str(stored),
             "--out", str(stored.parent / f"seed{seed}"),
             "--config", options.config, "--seed", str(seed), "--set", *options.set]
        )  # fmt: skip
    return code


if __name__ == "__main__":
    raise SystemExit(main())
