"""Pictures that were skipped once, and that their owner has repaired since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokensieve.data.sources import Listing
from tokensieve.data.sources.content import spread
from tokensieve.data.store.shards import Record, read_info
from tokensieve.errors import ConfigError


def skipped_chunks(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of the shards `names` that are there and hold skipped pictures.

    Raises `WeightsError` for a damaged shard.
    """
    there = [name for name in names if (folder / name).exists()]
    return [name for name in there if any(r.error for r in read_info(folder / name).records)]


def check_same_pictures(folder: Path, names: Sequence[str], listing: Listing) -> None:
    """Read some pictures that were stored and compare their hashes: repaired ones are welcome,
    other pictures are not.

    Raises `ConfigError` for other pictures, `WeightsError` for a damaged shard.
    """
    there = [name for name in names if (folder / name).exists()]
    for number in spread(len(there)):
        kept = [r for r in read_info(folder / there[number]).records if not r.error and r.sha256]
        for record in kept[:1]:
            _check(folder, record, listing)


def _check(folder: Path, record: Record, listing: Listing) -> None:
    if record.picture >= len(listing):
        return  # another listing: `begin` says so
    if listing.read(record.picture).sha256 != record.sha256:
        raise ConfigError(
            f"Expected the pictures that the store in {folder} was begun with. Got another "
            f"{record.source}/{record.key}. Choose another --out, or delete the folder."
        )
