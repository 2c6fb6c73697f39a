"""The manifest of a finished feature store: one row per crop, and per picture that was skipped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokensieve.data.extras import need
from tokensieve.data.store.groups import videos
from tokensieve.data.store.shards import NONFINITE, SKIPPED, ShardInfo, read_info
from tokensieve.errors import InputError, WeightsError
from tokensieve.fields import as_fields, check_fields, option, shown
from tokensieve.files import written_whole

MANIFEST = "manifest.parquet"
SHOWN = 10  # skipped pictures told with the summary
_NAME = re.compile(r"shard-\d{6,12}\.safetensors", re.ASCII)
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
class Listed:
    """One shard by the manifest. content: its hash, "" for none. size: bytes of the file."""

    name: str
    content: str
    crops: int = option(low=0)
    size: int = option(low=0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Manifest:
    """What a reader needs: source and picture of each crop, and the shards in order. sha256, video:
    of each crop, as dictionary-encoded columns; "" for none."""

    sources: tuple[str, ...]
    source_N: Int[Tensor, "N"]
    picture_N: Int[Tensor, "N"]
    shards: tuple[Listed, ...]
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
        with parquet.ParquetWriter(part, schema, write_page_checksum=True) as writer:
            rows: list[dict[str, Any]] = []
            for name in names:
                info = read_info(folder / name)
                total.add(info)
                rows += rows_of(info)
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
            short = record.sha256[:32].encode()
            self.duplicates += bool(short) and short in self._seen
            self._seen.add(short)

    def summary(self) -> Summary:
        return Summary(
            self.pictures, self.crops, self.tokens, self.skipped, self.duplicates, self.bytes,
            tuple(self.skipped_first), self.nonfinite,
        )  # fmt: skip


def rows_of(info: ShardInfo) -> Iterator[dict[str, Any]]:
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
    compute = need("pyarrow.compute", "train", "to read a feature store")
    if not path.is_file():
        raise WeightsError(
            f"Expected a finished feature store at {folder}. Got one without {MANIFEST}. Run the "
            "same `tokensieve extract` again: it goes on where it stopped."
        )
    try:
        table, shards = _read(path, parquet)
        table = table.filter(compute.greater_equal(table["row"], 0))
        column, sha256, key = (
            table[name].unify_dictionaries().combine_chunks()
            for name in ("source", "sha256", "key")
        )
        codes = torch.from_numpy(column.indices.to_numpy(zero_copy_only=False).copy()).long()
        pictures = torch.from_numpy(table["picture"].to_numpy().copy()).long()
        _check_rows(torch.from_numpy(table["row"].to_numpy().copy()), pictures, shards)
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"Expected a whole {path}. Got: {said}. Delete it and run extract again."
        ) from error
    for shard in shards:
        _check_file(folder, shard)
    return Manifest(
        tuple(column.dictionary.to_pylist()), codes, pictures, tuple(shards), sha256, videos(key)
    )


def _read(path: Path, parquet: Any) -> tuple[Any, list[Listed]]:
    """The columns that a reader needs, and the shards. Raises `ValueError` for other columns."""
    file = parquet.ParquetFile(
        path, read_dictionary=["source", "sha256", "key"], page_checksum_verification=True
    )
    with file:
        got = {field.name: str(field.type) for field in file.schema_arrow}
        for name, kind in _FIELDS:
            if got.get(name, "").removeprefix("dictionary<values=").partition(",")[0] != kind:
                raise ValueError(f"the column '{name}' as {got.get(name, 'none')}, not {kind}")
        table = file.read(columns=["source", "row", "picture", "sha256", "key"])
        listed = json.loads((file.metadata.metadata or {})[b"shards"])
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"no value in some row of '{name}'")
    names = [field.name for field in fields(Listed)]
    shards = [Listed(**as_fields(Listed, dict(zip(names, row, strict=True)))) for row in listed]
    seen: set[str] = set()
    for shard in shards:
        if not _NAME.fullmatch(shard.name):
            raise ValueError(f"a shard called {shown(shard.name)}, which extract calls none")
        if shard.name in seen:
            raise ValueError(f"the shard {shard.name} twice")
        seen.add(shard.name)
    return table, shards


def _check_rows(row_N: Tensor, picture_N: Tensor, shards: Sequence[Listed]) -> None:
    """Raise `ValueError` unless rows are the shards' crops, in order."""
    total = sum(shard.crops for shard in shards)
    if total != len(row_N) or total == 0:
        raise ValueError(f"{len(row_N)} crops where its shards have {total}")
    wanted_N = torch.cat([torch.arange(shard.crops) for shard in shards])
    ordered = bool((picture_N[1:] >= picture_N[:-1]).all()) and int(picture_N[0]) >= 0
    if not ordered or not torch.equal(row_N.long(), wanted_N):
        raise ValueError("rows in another order than its shards")


def _check_file(folder: Path, shard: Listed) -> None:
    """Raise `WeightsError` for a shard that is missing, was cut off or lies elsewhere."""
    path = folder / shard.name
    if path.resolve().parent != folder.resolve():
        raise WeightsError(
            f"Expected the shards of a store inside its folder. Got {path}, a link to "
            f"{path.resolve().parent}. Put the file itself there."
        )
    got = path.stat().st_size if path.is_file() else None
    if got != shard.size:
        raise WeightsError(
            f"Expected a shard of {shard.size} bytes at {path}. Got "
            f"{'none' if got is None else got}. Delete it and {MANIFEST}, and run extract again: "
            "only its pictures are read anew."
        )
