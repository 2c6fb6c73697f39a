"""Pictures in parquet files and in data sets of the `datasets` package."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokensieve.data.extras import need
from tokensieve.data.pictures.decode import LIMITS, Limits, named
from tokensieve.data.sources.content import in_parts, inside, plain, spans_hash, spread
from tokensieve.data.sources.files import read_bytes
from tokensieve.errors import ConfigError, InputError, MissingPackageError, PictureError, brief

HELD = 1 << 29  # bytes of the row groups that stay open, so that neighbours are read once
ROWS = 1_000_000  # of a file that has fewer bytes
PASSED = 256  # rows of each that stay in memory when a later one is asked for first
GUESSES = ("image", "images", "picture", "img", "jpg", "png", "bytes")


class ParquetSource:
    """A column of pictures in parquet files: bytes, or a struct of bytes and path.

    A key is the row's number, after the file's name where there are several files. Raises
    `InputError` for a damaged file or one without rows, `ConfigError` for an unknown column.
    """

    def __init__(self, name: str, paths: Sequence[Path], column: str | None) -> None:
        parquet = need("pyarrow.parquet", "train", "to read parquet files")
        arrow = need("pyarrow", "train", "to read parquet files")
        self.name, self._paths = name, tuple(paths)
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self._files, self._rows, keys = [], [], []
        for number, path in enumerate(self._paths):
            file, counts = _opened(parquet, path)
            schema = file.schema_arrow
            fitting = [field.name for field in schema if _holds_pictures(arrow, field.type)]
            column = choose_column(str(path), column, schema.names, fitting)
            self._files.append(file)
            self._rows += [(number, g, row) for g, rows in enumerate(counts) for row in range(rows)]
            prefix = f"{plain(path.name)}#" if len(self._paths) > 1 else ""
            keys += [f"{prefix}{row:08d}" for row in range(sum(counts))]
        self.detail = self._column = column or ""
        self.keys: Sequence[str] = keys
        if not keys:
            raise InputError(f"Expected rows in {self._paths[0]}. Got none. Check the file.")

    def content(self) -> str:
        """Short hash of the files' sizes, and of places in them, footers among these."""
        return spans_hash(in_parts(self._paths))

    def read(self, index: int, limits: Limits = LIMITS) -> bytes:
        """The picture file's bytes. Raises `PictureError` for an empty cell, or a row group that
        would grow beyond the limits when it is unpacked."""
        number, group, row = self._rows[index]
        name = f"{self.name}/{self.keys[index]}"
        with self._lock, named(name):
            cell = self._group(number, group, name, limits).row(row)
        return cell_bytes(cell, name, self._paths[number].parent, limits)

    def _group(self, number: int, group: int, name: str, limits: Limits) -> _Group:
        """The row group, opened or still open."""
        place = (number, group)
        if place not in self._groups:
            self._groups[place] = _Group(self._files[number], group, self._column, name, limits)
        self._groups.move_to_end(place)
        while len(self._groups) > 2 and sum(held.size for held in self._groups.values()) > HELD:
            self._groups.popitem(last=False)
        return self._groups[place]


class _Group:
    """The rows of one row group, read one by one so that they are never all in memory.

    size: of its pictures, in bytes. Raises `PictureError` for one that unpacks to too many.
    """

    def __init__(self, file: Any, group: int, column: str, name: str, limits: Limits) -> None:
        told = file.metadata.row_group(group)
        chunks = [told.column(i) for i in range(told.num_columns)]
        own = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column]
        self.size = sum(max(0, chunk.total_uncompressed_size) for chunk in own)
        packed = sum(max(0, chunk.total_compressed_size) for chunk in own)
        if self.size > max(limits.pixels, limits.ratio * packed):
            raise PictureError(
                f"Expected {packed:,} bytes of pictures to unpack to at most {limits.ratio} times "
                f"as many. Got {self.size:,} in the row group of {name}. Write it with smaller row "
                "groups (--max-pixels of `extract` raises the limit)."
            )
        self._open: Callable[[], Iterator[Any]] = partial(
            file.iter_batches,
            batch_size=1, row_groups=[group], columns=[column], use_threads=False,
        )  # fmt: skip
        self._rows, self._next = self._open(), 0
        self._passed: OrderedDict[int, Any] = OrderedDict()  # rows for threads that are behind

    def row(self, number: int) -> Any:
        """The cell of that row; cheap where rows are asked for about in order, each once."""
        if number in self._passed:
            return self._passed.pop(number).as_py()
        if number < self._next:
            self._rows, self._next = self._open(), 0
        while True:
            cell = next(self._rows).column(0)
            self._next += 1
            if self._next > number:
                return cell[0].as_py()
            self._passed[self._next - 1] = cell[0]
            if len(self._passed) > PASSED:
                self._passed.popitem(last=False)


def _opened(parquet: Any, path: Path) -> tuple[Any, list[int]]:
    """A parquet file, and how many rows each of its row groups has."""
    try:
        file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        told, size = file.metadata, path.stat().st_size
        counts = [told.row_group(group).num_rows for group in range(told.num_row_groups)]
    except Exception as error:  # OSError, ArrowException, and what a garbled footer leads to
        raise InputError(
            f"Expected a parquet file at {path}. Got: {brief(error)}. Fetch it again."
        ) from error
    if sum(counts) > max(size, ROWS) or min(counts, default=0) < 0:
        raise InputError(
            f"Expected a parquet file of pictures at {path}. Got {sum(counts):,} rows in {size:,} "
            "bytes. Fetch it again."
        )
    return file, counts


class DatasetSource:
    """A data set of the hub or of a local folder, read with the `datasets` package.

    A key is the row's number. Raises `InputError` if it cannot be loaded, `ConfigError` for an
    unknown split or column.
    """

    def __init__(self, name: str, dataset: str, split: str | None, column: str | None) -> None:
        datasets = need("datasets", "datasets", "to read data sets")
        self.name = name
        table = _load(datasets, dataset, split)
        fitting = [
            key for key, kind in table.features.items() if isinstance(kind, datasets.Image)
        ] or [key for key in table.column_names if key in GUESSES]
        chosen = choose_column(dataset, column, table.column_names, fitting)
        if isinstance(table.features[chosen], datasets.Image):
            table = table.cast_column(chosen, datasets.Image(decode=False))
        self._table = table.select_columns([chosen])
        self.detail = self._column = chosen
        self._lock = threading.Lock()
        self.keys: Sequence[str] = [f"{row:08d}" for row in range(len(table))]
        if not self.keys:
            raise InputError(f"Expected rows in the data set {dataset}. Got none. Choose a split.")

    def content(self) -> str:
        """Short hash of the split's name and of some pictures' bytes."""
        digest = hashlib.sha256(str(self._table.split).encode())
        for index in spread(len(self.keys)):
            try:
                digest.update(hashlib.sha256(self.read(index)).digest())
            except PictureError:
                digest.update(b"?")
        return digest.hexdigest()[:16]

    def read(self, index: int, limits: Limits = LIMITS) -> bytes:
        """The picture file's bytes. Raises `PictureError` for an empty cell."""
        name = f"{self.name}/{self.keys[index]}"
        with self._lock, named(name):
            cell = self._table[index][self._column]
        return cell_bytes(cell, name, None, limits)


def _load(datasets: Any, dataset: str, split: str | None) -> Any:
    """The table of one split."""
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise MissingPackageError(
            "Expected the package datasets 4 or newer, which runs no code that comes with a data "
            f"set. Got {datasets.__version__}. Run: pip install 'tokensieve[datasets]'."
        )
    folder = Path(dataset).expanduser()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(dataset)
    except Exception as error:  # of a stranger's folder the package raises anything
        first = brief(str(error).strip().partition("\n")[0])
        raise InputError(
            f"Expected a data set that `datasets` can load: '{dataset}'. Got: {first}. "
            "Check the name, or give a local folder."
        ) from error
    if not hasattr(found, "keys"):
        if split not in (None, str(found.split)):
            raise ConfigError(
                f"Expected no split for '{dataset}', which has one. Got '{split}'. Leave it out."
            )
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ConfigError(
            f"Expected a split of '{dataset}': {', '.join(found)}. Got {split or 'none'}. "
            f"Write hf:{dataset}:{next(iter(found))}."
        )
    return found[split]


def choose_column(
    where: str, asked: str | None, names: Sequence[str], fitting: Sequence[str]
) -> str:
    """The column of pictures: the one asked for, or the only likely one.

    Raises `ConfigError` that lists the columns.
    """
    if asked is not None and asked in names:
        return asked
    likely = [name for name in GUESSES if name in fitting] or list(fitting)
    if asked is None and likely and (likely[0] in GUESSES or len(likely) == 1):
        return likely[0]
    got = f"'{asked}', which is not there" if asked else "several or none that fit"
    raise ConfigError(
        f"Expected a column of pictures in {where}. Got {got}. "
        f"Choose one with --column: {', '.join(names)}."
    )


def _holds_pictures(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_struct(kind):
        return "bytes" in [field.name for field in kind]
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def cell_bytes(cell: Any, name: str, folder: Path | None, limits: Limits = LIMITS) -> bytes:
    """The bytes a cell holds or names. Raises `PictureError` if it does neither.

    folder: where the table lies, and beyond which no cell may point; None: anywhere, as the paths
    that `datasets` itself writes into a table do.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, bytes) and data:
        return data
    if isinstance(cell, dict) and isinstance(cell.get("path"), str) and cell["path"]:
        path = Path(cell["path"]) if folder is None else inside(folder, cell["path"])
        if path is None:
            raise PictureError(
                f"Expected {name} to name a picture below {folder}. Got {brief(cell['path'])}. "
                "Move it there, or store its bytes."
            )
        return read_bytes(path, limits)
    got = "an empty cell" if not cell else f"a {type(cell).__name__} without bytes"
    raise PictureError(f"Expected the bytes of a picture in {name}. Got {got}. Check the table.")
