"""A whole feature store held against what was written: `tokensieve extract --verify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.data.extras import need
from tokensieve.data.store.identity import STORE, read_identity
from tokensieve.data.store.manifest import MANIFEST, read_manifest, rows_of
from tokensieve.data.store.shards import Layout, Shard, damaged, read_info
from tokensieve.errors import TokensieveError, WeightsError
from tokensieve.nn.config import encoder_from_dict


@dataclass(frozen=True)
class Verified:
    """What came of it.

    finished: whether there is a manifest; without one only the shards there are were looked at.
    unhashed: shards written without a hash, whose bytes say nothing. problems: one line each.
    """

    shards: int
    crops: int
    bytes: int
    finished: bool
    unhashed: int
    problems: tuple[str, ...]

    def require(self, folder: Path) -> None:
        """Raise `WeightsError` where something is wrong."""
        if self.problems:
            raise WeightsError(
                f"Expected a whole store at {folder}. Got {len(self.problems)} problem(s), each on "
                "a line of its own above. Delete those shards and run the same `tokensieve "
                "extract` again: only their pictures are read anew."
            )


def verify_store(
    folder: str | Path, progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Read every byte of a store: hashes, shapes, counts, finite features, and the manifest's rows.

    progress: called with shards done and shards to do. Changes nothing.

    Raises `WeightsError` for a folder that is no store, `MissingPackageError` without pyarrow.
    """
    folder = Path(folder)
    identity = read_identity(folder)
    encoder = encoder_from_dict(identity["encoder"])
    layout = Layout(encoder.width, identity["dtype"], bool(identity.get("pixels")))
    problems: list[str] = []
    contents: dict[str, str] = {}
    rows: dict[str, list[dict[str, Any]]] | None = None
    if (folder / MANIFEST).exists():
        try:
            contents = {shard.name: shard.content for shard in read_manifest(folder).shards}
            rows = _rows_by_shard(folder)
        except WeightsError as error:
            problems.append(str(error))
    there = {path.name for path in folder.glob("shard-*.safetensors")}
    if rows is not None:
        problems += [
            f"Expected the shards of the manifest in {folder}. Got another, {name}. Delete it."
            for name in sorted(there - contents.keys())
        ]
    crops = size = unhashed = 0
    names = sorted(contents or there)
    for done, name in enumerate(names):
        try:
            found = _verify_shard(folder / name, layout, contents.get(name), rows)
        except TokensieveError as error:
            problems.append(str(error))
        else:
            crops, size, unhashed = crops + found[0], size + found[1], unhashed + found[2]
        if progress is not None:
            progress(done + 1, len(names))
    if not names and not problems:
        problems.append(f"Expected shards beside {STORE} in {folder}. Got none.")
    return Verified(len(names), crops, size, rows is not None, unhashed, tuple(problems))


def _verify_shard(
    path: Path, layout: Layout, content: str | None, rows: dict[str, list[dict[str, Any]]] | None
) -> tuple[int, int, int]:
    """(crops, bytes, whether it has no hash) of one shard. Raises `WeightsError`."""
    info = read_info(path)
    known = info.content if content is None else content
    shard = Shard(path, layout, known)
    if not shard.finite:
        raise damaged(path, "NaN or Inf in its features")
    if rows is not None and list(rows_of(info)) != rows.get(path.name, []):
        raise damaged(path, f"other pictures than {MANIFEST} says")
    return len(shard), info.size, int(not known)


def _rows_by_shard(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The manifest's rows of each shard, as `rows_of` makes them."""
    parquet = need("pyarrow.parquet", "train", "to read a feature store")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in parquet.read_table(folder / MANIFEST).to_pylist():
        found.setdefault(row["shard"], []).append(row)
    return found
