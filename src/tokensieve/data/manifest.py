"""The manifest of a finished feature store: one row per crop, and per picture that was skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.data.extras import need
from tokensieve.data.groups import videos
from tokensieve.data.shards import NONFINITE, SKIPPED, ShardInfo, read_info
from tokensieve.errors import InputError, WeightsError
from tokensieve.files import written_whole

MANIFEST = "manifest.parquet"
SHOWN = 10  # skipped pictures told with the summary
_FLUSH = 100_000  # rows in memory at once
_FIELDS = (
    ("key", "string"), ("source", "string"), ("picture", "int64"), ("crop", "int32"),
    ("shard", "string"), ("row", "int32"), ("sha256", "string"), ("grid_rows", "int32"),
    ("grid_columns", "int32"), ("width", "int32"), ("height", "int32"), ("status", "string"),
    ("error", "string"),
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What a store holds.

    duplicates: pictures whose bytes equal an earlier one's. skipped_first: (source/key, error) of
    the first skipped pictures; the rest are in the manifest. nonfinite: those skipped because the
    dtype cannot hold their features.
    """

    pictures: int
    crops: int
    tokens: int
    skipped: int
    duplicates: int
    bytes: int
    skipped_first: tuple[tuple[str, str], ...]
    nonfinite: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Manifest:
    """What a reader needs: source and picture of each crop; per shard, name, content hash, crops
    and bytes. sha256, video: of each crop, as dictionary-encoded columns; "" for none."""

    sources: tuple[str, ...]
    source_N: Int[Tensor, "N"]
    picture_N: Int[Tensor, "N"]
    shards: tuple[tuple[str, str, int, int], ...]
    sha256: Any
    video: Any


def write_manifest(folder: Path, names: Sequence[str]) -> Summary:
    """Write the manifest over the shards `names`, all of which are there; sum them up.

    Raises `WeightsError` for a damaged shard, `InputError` if not a single picture was readable.
    """
    pa = need("pyarrow", "train", "to write the manifest")
    parquet = need("pyarrow.parquet", "train", "to write the manifest")
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _FIELDS])
    total = _Total()
    with written_whole(folder / MANIFEST) as part:
        with parquet.ParquetWriter(part, schema) as writer:
            rows: list[dict[str, Any]] = []
            for name in names:
                info = read_info(folder / name)
                total.add(info)
                rows += _rows(info)
                if len(rows) >= _FLUSH:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema))
            writer.add_key_value_metadata({"shards": json.dumps(total.shards)})
        if total.crops == 0:
            where, error = total.skipped_first[0]
            raise InputError(
                f"Expected at least one readable picture. Got {total.skipped}, none of them "
                f"readable; the first, {where}: {error}"
            )
    return total.summary()


class _Total:
    """Running sums over shards."""

    def __init__(self) -> None:
        self.pictures = self.crops = self.tokens = self.skipped = self.duplicates = 0
        self.bytes = self.nonfinite = 0
        self.skipped_first: list[tuple[str, str]] = []
        self.shards: list[tuple[str, str, int, int]] = []
        self._seen: set[bytes] = set()

    def add(self, info: ShardInfo) -> None:
        self.shards.append((info.name, info.content, len(info.grids), info.size))
        self.pictures += len(info.records)
        self.crops += len(info.grids)
        self.tokens += info.tokens
        self.bytes += info.size
        for record in info.records:
            if record.error:
                self.skipped += 1
                self.nonfinite += record.error.startswith(NONFINITE)
                if len(self.skipped_first) < SHOWN:
                    self.skipped_first.append((f"{record.source}/{record.key}", record.error))
                continue
            short = bytes.fromhex(record.sha256)[:16]
            self.duplicates += bool(short) and short in self._seen
            self._seen.add(short)

    def summary(self) -> Summary:
        return Summary(
            self.pictures, self.crops, self.tokens, self.skipped, self.duplicates, self.bytes,
            tuple(self.skipped_first), self.nonfinite,
        )  # fmt: skip


def _rows(info: ShardInfo) -> Iterator[dict[str, Any]]:
    """The manifest's rows of one shard."""
    row, grids = 0, info.grids.tolist()
    for record in info.records:
        told = {
            "key": record.key, "source": record.source, "picture": record.picture,
            "shard": info.name, "sha256": record.sha256, "width": record.width,
            "height": record.height, "status": SKIPPED if record.error else "ok",
            "error": record.error, "crop": -1, "row": -1, "grid_rows": 0, "grid_columns": 0,
        }  # fmt: skip
        if record.error:
            yield told
        for crop in range(record.crops):
            place = {"grid_rows": grids[row][0], "grid_columns": grids[row][1]}
            yield {**told, "crop": crop, "row": row, **place}
            row += 1


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`.

    Raises `WeightsError` for a store that is unfinished or lost a shard, or a damaged manifest.
    """
    path = folder / MANIFEST
    pa = need("pyarrow", "train", "to read a feature store")
    parquet = need("pyarrow.parquet", "train", "to read a feature store")
    if not path.is_file():
        raise WeightsError(
            f"Expected a finished feature store at {folder}. Got one without {MANIFEST}. Run the "
            "same `tokensieve extract` again: it goes on where it stopped."
        )
    try:
        table = parquet.read_table(
            path,
            columns=["source", "row", "picture", "sha256", "key"],
            read_dictionary=["source", "sha256", "key"],
        )
        shards = json.loads(parquet.read_metadata(path).metadata[b"shards"])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise WeightsError(
            f"Expected a whole {path}. Got: {error}. Delete it and run extract again."
        ) from error
    table = table.filter(pa.compute.greater_equal(table["row"], 0)) if len(table) else table
    column, sha256, key = (
        table[name].unify_dictionaries().combine_chunks() for name in ("source", "sha256", "key")
    )
    codes = torch.from_numpy(column.indices.to_numpy(zero_copy_only=False).copy()).long()
    pictures = torch.from_numpy(table["picture"].to_numpy().copy()).long()
    ends = [0]
    for name, _, crops, size in shards:
        _check_size(folder / name, size)
        ends.append(ends[-1] + crops)
    if ends[-1] != len(codes) or any(b < a for a, b in pairwise(ends)):
        raise WeightsError(
            f"Expected {ends[-1]} crops in {path}. Got {len(codes)}. Delete it and extract again."
        )
    return Manifest(
        tuple(column.dictionary.to_pylist()), codes, pictures,
        tuple((n, c, k, s) for n, c, k, s in shards), sha256, videos(key),
    )  # fmt: skip


def _check_size(path: Path, size: int) -> None:
    """Raise `WeightsError` for a shard that is missing or was cut off."""
    got = path.stat().st_size if path.exists() else None
    if got != size:
        raise WeightsError(
            f"Expected a shard of {size} bytes at {path}. Got {'none' if got is None else got}. "
            f"Delete it and {MANIFEST}, and run extract again: only its pictures are read anew."
        )
